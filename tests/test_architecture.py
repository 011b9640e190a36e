"""Data flows one way: allowed imports and includes, the length of files, and names that no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 500
"""Far above the length of any file, so that no rule on lines shapes a design."""

RUNTIME_ROOMS = (
    {"errors"},
    {"dtypes", "storage"},
    {"inputs", "ops"},
    {"backend", "pruning"},
    {"policies"},
    {"model"},
    {"generation"},
    {"scheduler"},
    {"engine"},
    {"bench", "eval", "serving"},
    {"tune"},
    {"cli"},
)
"""Parts of `vlkv` by floor. Each imports only from floors below its own."""


HARNESSES = ("vlkv_harness", "lmms_eval", "vlmeval")

EXPORT_SEES_OF_RUNTIME = {
    "vlkv.errors",
    "vlkv.inputs.embedding",
    "vlkv.ops.constants",
    "vlkv.storage.files",
    "vlkv.storage.manifest",
    "vlkv.storage.image_facts",
    "vlkv.storage.directories",
    "vlkv.storage.passes",
    "vlkv.storage.protobuf",
    "vlkv.cli.console",
    "vlkv.cli.paths",
}
EXPORT_PARTS = {
    "ops": set(),
    "checkpoint": set(),
    "graph": {"checkpoint", "ops"},
    "models": {"checkpoint", "graph"},
    "passes": {"graph", "ops"},
    "watch": set(),
    "quality": set(),
    "weights": {"checkpoint", "passes", "watch"},
    "directory": {"checkpoint", "graph", "models", "ops", "watch", "weights"},
    "targets": {"checkpoint", "ops", "passes", "watch", "weights"},
    "graphs": {"targets"},
    "engine": {"directory", "graphs", "targets", "watch", "weights"},
    "adopt": {"checkpoint", "directory", "graph", "graphs", "models", "ops", "passes", "weights"},
    "cli": {"adopt", "directory", "engine", "quality", "targets", "watch"},
}
"""Parts of `vlkv_export`, and the other parts that each may import."""

PACKAGES = {"PIL": "pillow", "opentelemetry": "opentelemetry_sdk"}
"""Distributions whose name differs from the name of their import."""

PROVIDED = {"triton_python_backend_utils"}
"""Modules that the program brings in which the code runs."""

CPP = {".cpp", ".cc", ".h", ".hpp", ".inl", ".cu", ".cuh"}


def sources(folder: str, endings: set[str] | None = None) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in (endings or {".py"}))


def imports(path: Path) -> set[str]:
    """Returns the full names of the modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name}


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def includes(path: Path) -> set[str]:
    return set(re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE))


def declared(*extras: str) -> set[str]:
    """Returns the names of the packages that `pyproject.toml` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        text for extra in extras for text in project["optional-dependencies"][extra]
    ]
    return {re.split(r"[<>=~!\[; ]", text)[0].lower().replace("-", "_") for text in wanted}


def foreign(path: Path) -> set[str]:
    """Returns the distributions that a file imports beside the standard library and this package."""
    tops = {name.split(".")[0] for name in imports(path)}
    ours = {"vlkv", "vlkv_export"} | set(sys.stdlib_module_names)
    return {PACKAGES.get(name, name).lower() for name in tops - ours - PROVIDED}


def test_there_is_something_to_look_at():
    assert len(sources("python/vlkv")) > 20
    assert len(sources("export")) > 20
    assert {path.name for path in (ROOT / "export" / "vlkv_export").iterdir() if path.is_dir()} - {"__pycache__"} == {
        "adopt", "checkpoint", "graph", "models", "ops", "passes", "targets", "weights"
    }  # fmt: skip
    assert len(sources("cpp", CPP)) > 10
    assert len(sources("tests/oracles")) >= 3


def test_the_runtime_imports_nothing_of_export():
    forbidden = ("vlkv_export", "torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors")
    for path in sources("python"):
        bad = {name for name in imports(path) if any(within(name, module) for module in forbidden)}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_rooms_of_the_runtime_stand_in_one_order():
    floors = {part: floor for floor, parts in enumerate(RUNTIME_ROOMS) for part in parts}
    for path in sources("python/vlkv"):
        part = path.relative_to(ROOT / "python" / "vlkv").parts[0].removesuffix(".py")
        if part == "__init__":  # the public names, loaded when first used
            continue
        assert part in floors, f"python/vlkv/{part} has no place in the order: add it to RUNTIME_ROOMS"
        for name in imports(path):
            other = name.split(".")[1] if within(name, "vlkv") and name != "vlkv" else part
            if other in floors and other != part:
                assert floors[other] < floors[part], f"{path.relative_to(ROOT)} imports {name}"


def test_no_modules_of_the_runtime_import_each_other():
    found = {}
    for path in sources("python/vlkv"):
        name = ".".join(path.relative_to(ROOT / "python").with_suffix("").parts).removesuffix(".__init__")
        found[name] = imports(path)
    del found["vlkv"]  # the public names, loaded when first used
    graph = {
        name: {other for other in names & set(found) if not within(name, other)}
        for name, names in found.items()
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(("folder", "extras"), [("python", ("serve", "bench")), ("export", ("export",))])
def test_only_declared_packages_are_imported(folder, extras):
    for path in sources(folder):
        own = {
            "chart.py": ("eval",),
            "app.py": ("ray", "otel"),
            "endpoint.py": ("tune",),
            "records.py": ("otel",),
            "run.py": ("ray",),
            "search.py": ("tune",),
            "llvm.py": ("tune-ir",),
            "llvm_worker.py": ("tune-ir",),
            "video.py": ("video",),
        }.get(path.name, ())
        missing = foreign(path) - declared(*extras, *own)
        assert not missing, (
            f"{path.relative_to(ROOT)} imports {sorted(missing)}, pyproject.toml names no such"
        )


def test_export_sees_files_and_errors_of_the_runtime_only():
    for path in sources("export"):
        for name in imports(path):
            if within(name, "vlkv") and name != "vlkv" and not within(name, "vlkv_export"):
                assert any(within(name, module) for module in EXPORT_SEES_OF_RUNTIME), (
                    f"{path.relative_to(ROOT)} imports {name}"
                )


def test_what_export_sees_of_the_runtime_sees_no_more():
    seen = {f"vlkv.{path.stem}" for path in (ROOT / "python" / "vlkv").glob("*.py")}
    for module in EXPORT_SEES_OF_RUNTIME:
        path = ROOT / "python" / Path(*module.split(".")).with_suffix(".py")
        for name in imports(path) & (seen | {"vlkv.cli", "vlkv.backend"}):
            assert name in EXPORT_SEES_OF_RUNTIME, f"{module} imports {name}"


def test_parts_of_export_stand_in_one_order():
    for path in sources("export"):
        part = path.relative_to(ROOT / "export" / "vlkv_export").parts[0].removesuffix(".py")
        if part == "__init__":
            assert not imports(path)
            continue
        assert part in EXPORT_PARTS, f"export/{part} has no place in the order: add it to EXPORT_PARTS"
        for name in imports(path):
            if within(name, "vlkv_export") and name != "vlkv_export":
                other = name.split(".")[1]
                assert other in EXPORT_PARTS[part] | {part}, f"{path.relative_to(ROOT)} imports {name}"


def test_nobody_imports_torch_to_export():
    for path in sources("export"):
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers", "safetensors"}


def test_peers_and_this_package_never_meet():
    for path in sources("peers"):
        assert not any(within(name, "vlkv") for name in imports(path)), path
    for path in sources("python") + sources("export"):
        assert not any(within(name, "vlkv_peers") for name in imports(path)), path


def test_nothing_imports_a_harness():
    """Adapters stand on the public names, errors and policies of the runtime; nothing stands on them."""
    for path in sources("python") + sources("export") + sources("peers"):
        bad = {name for name in imports(path) for module in HARNESSES if within(name, module)}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"
    seen = ("vlkv.Engine", "vlkv.Question", "vlkv.errors", "vlkv.policies.builtin")
    for path in sources("harness"):
        for name in imports(path):
            if within(name, "vlkv") and name != "vlkv":
                assert any(within(name, module) for module in seen), (
                    f"{path.relative_to(ROOT)} imports {name}"
                )


def test_oracles_are_independent():
    for path in sources("tests/oracles"):
        assert foreign(path) <= {"numpy", "oracles"}
        assert not any(within(name, "vlkv") for name in imports(path))


def test_kernels_know_neither_tensorrt_nor_python():
    for path in sources("cpp", CPP):
        names = includes(path)
        where = path.relative_to(ROOT)
        assert not any(name.startswith(("NvInfer", "NvOnnx")) for name in names), where
        assert not any("plugin" in name for name in names), where
        if "bindings" not in path.parts:
            assert not any(re.match(r"Python\.h|nanobind|pybind11|numpy/", name) for name in names), where
            assert not any("bindings" in name for name in names), where
        # neither kernels nor bindings reach into tests
        if not {"tests", "bench", "fuzz"} & set(path.parts):
            assert not any(name.startswith(("gtest", "benchmark", "cases")) for name in names), where


def test_kernels_do_not_depend_on_their_callers():
    for path in sources("cpp/core", CPP) + sources("cpp/cpu", CPP) + sources("cpp/include", CPP):
        folder = path.relative_to(ROOT / "cpp").parts[0]
        below = {"include": ("vlkv/",), "core": ("vlkv/", "core/"), "cpu": ("vlkv/", "core/", "cpu/")}[folder]
        for name in re.findall(r'#\s*include\s*"([^"]+)"', path.read_text()):
            assert name.startswith(below) or (path.parent / name).exists(), (
                f"{path.relative_to(ROOT)}: {name}"
            )


def test_plugin_and_bindings_never_meet():
    if not (ROOT / "plugin").is_dir():
        pytest.skip("no plugin")
    for path in sources("plugin", CPP):
        assert not any(re.search(r"bindings|nanobind|Python\.h", name) for name in includes(path)), path
    for path in sources("cpp/bindings", CPP):
        assert not any("plugin" in name for name in includes(path)), path


@pytest.mark.parametrize("folder", ["python", "export", "peers", "harness"])
def test_files_are_short(folder):
    for path in sources(folder):
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git repository")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_of_one_machine():
    places = re.compile("|".join(rf"(?<![\w.])/{name}/" for name in ("work", "root")) + r"|/home/\w")
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = places.search(text)
        assert not found, f"{path.relative_to(ROOT)} names {text[found.start() :][:40]!r}"


def test_no_weights_or_engines_are_tracked_beside_the_shipped_checkpoint():
    for path in tracked():
        if path.suffix in {".safetensors", ".bin", ".engine", ".plan"}:
            assert any(
                path.is_relative_to(ROOT / "examples" / name) for name in ("tiny_vlm", "real_reader")
            ), path
        assert path.stat().st_size < 8 << 20, path
