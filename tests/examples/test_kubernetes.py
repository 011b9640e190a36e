"""The Kubernetes manifests fit the API's own schemas, and kustomize builds the base and the overlay from them."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
validator = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed: make .venv/tested"
)

PLACE = Path(__file__).parents[2] / "examples" / "kubernetes"
BASE, OVERLAY = PLACE / "base", PLACE / "overlays" / "example"
KUSTOMIZE = Path(sys.prefix) / "kustomize"
"""The package whose shared library holds kustomize."""


def objects():
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    return [
        one for name in kustomization["resources"] for one in yaml.safe_load_all((BASE / name).read_text())
    ]


def test_every_file_is_a_resource():
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert kustomization["kind"] == "Kustomization"
    assert {path.name for path in BASE.glob("*.yaml")} == {*kustomization["resources"], "kustomization.yaml"}


@pytest.mark.parametrize("one", objects(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_fits_its_schema(one):
    validator.validate(one, validator.latest_version(), strict=True)


def test_a_wrong_manifest_does_not():
    wrong = next(one for one in objects() if one["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "http"
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, validator.latest_version(), strict=True)


def test_services_and_volumes_find_what_they_name():
    deployments = [one for one in objects() if one["kind"] == "Deployment"]
    claims = {one["metadata"]["name"] for one in objects() if one["kind"] == "PersistentVolumeClaim"}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in deployments]
    for one in objects():
        if one["kind"] == "Service":
            assert any(one["spec"]["selector"].items() <= found.items() for found in labels)
    for one in deployments:
        pod = one["spec"]["template"]["spec"]
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == names
        for volume in pod["volumes"]:
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "vlkv-engine") in claims


def test_the_server_is_started_with_options_that_it_has():
    from typer.main import get_command

    from vlkv.cli import main

    main._add_commands()
    known = {
        option for parameter in get_command(main.app).commands["serve"].params for option in parameter.opts
    }
    deployment = next(one for one in objects() if one["metadata"]["name"] == "vlkv-serve")
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:2] == ["vlkv", "serve"]
    assert {argument for argument in arguments if argument.startswith("--")} <= known


@pytest.fixture(scope="module")
def build():
    """Builds a folder as `kubectl kustomize` does; the objects, or kustomize's error as `ValueError`."""
    libraries = sorted(KUSTOMIZE.glob("pykustomize/_lib/*/libpykustomize.so"))
    if not libraries:
        pytest.skip("kustomize is not installed: make .venv/tested")
    try:
        library = ctypes.CDLL(str(libraries[0]))
    except OSError as error:
        pytest.skip(f"kustomize can't be loaded here: {error}")
    library.pykustomize_last_error.restype = ctypes.c_char_p

    def run(folder):
        found = ctypes.c_char_p()
        if library.pykustomize_build(str(folder).encode(), b"{}", ctypes.byref(found)):
            raise ValueError(library.pykustomize_last_error().decode())
        return list(yaml.safe_load_all(found.value))

    return run


def by_name(objects):
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


@pytest.mark.parametrize("folder", [BASE, OVERLAY], ids=["base", "overlay"])
def test_kustomize_builds_what_fits_the_schemas(build, folder):
    built = build(folder)
    assert by_name(built).keys() == by_name(objects()).keys()
    for one in built:
        validator.validate(one, validator.latest_version(), strict=True)
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "vlkv"


def test_the_overlay_changes_what_it_names(build):
    base, changed = by_name(build(BASE)), by_name(build(OVERLAY))
    assert {one["metadata"]["namespace"] for one in changed.values()} == {"vlkv"}
    serve, triton = (("Deployment", f"vlkv-{name}") for name in ("serve", "triton"))
    assert (base[serve]["spec"]["replicas"], changed[serve]["spec"]["replicas"]) == (2, 4)
    (before,), (after,) = (one[serve]["spec"]["template"]["spec"]["containers"] for one in (base, changed))
    assert after["image"] == "registry.example/vlkv:1.0.0"
    assert after["resources"]["limits"] == {"cpu": "8", "memory": "24Gi"}
    assert after["args"][-2:] == ["--memory", "12GiB"]
    assert after["args"][:-1] == before["args"][:-1]
    (container,) = changed[triton]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/vlkv-triton:1.0.0"


def test_kustomize_refuses_a_patch_that_finds_nothing(build, tmp_path):
    text = (
        (OVERLAY / "kustomization.yaml")
        .read_text()
        .replace("path: /spec/resources/requests/storage", "path: /spec/no/such")
    )
    (tmp_path / "base").mkdir()
    for path in BASE.glob("*.yaml"):
        (tmp_path / "base" / path.name).write_text(path.read_text())
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(text.replace("../../base", "../base"))
    with pytest.raises(ValueError, match="/spec/no/such"):
        build(tmp_path / "overlay")
