"""The Kubernetes manifests fit the API's own schemas and name only files that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
validator = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed: make .venv/tested"
)

BASE = Path(__file__).parents[2] / "examples" / "kubernetes" / "base"


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
