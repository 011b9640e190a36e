"""The plugin library: its exports, and every method through the registry of TensorRT's lean runtime."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from native_build import BUILD


@pytest.fixture(scope="module")
def lean() -> Path:
    """Returns TensorRT's lean runtime or the full one. Both have a plugin registry that needs no GPU."""
    for package, library in (("tensorrt_lean_libs", "libnvinfer_lean"), ("tensorrt_libs", "libnvinfer")):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            return next(Path(spec.submodule_search_locations[0]).glob(f"{library}.so.*"))
    pytest.skip("no lean runtime (pip install tensorrt-lean-cu13-libs)")


def symbols(library: Path, *options: str) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("no nm (binutils)")
    lines = subprocess.check_output(["nm", "-D", "-P", *options, library], text=True).splitlines()
    return sorted(line.split()[0] for line in lines)


def test_exports_entry_points_alone(plugin):
    assert symbols(plugin, "--defined-only") == [
        "getCreators",
        "setLoggerFinder",
        "vlkv_draw_cuda",
        "vlkv_has_cuda",
        "vlkv_move_slots_cuda",
        "vlkv_pick_cuda",
    ]


def test_links_neither_tensorrt_nor_cuda(plugin):
    taken = symbols(plugin, "--undefined-only")
    assert not [name for name in taken if re.match(r"cuda|cu[A-Z]|nvinfer|getPluginRegistry|getLogger", name)]


def kernels() -> list[str]:
    """Tells the driver whether the build has kernels and this machine has a device."""
    if not ctypes.CDLL(str(BUILD / "cpp" / "libvlkv.so")).vlkv_has_cuda():
        return []
    try:
        device = ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        device = False
    return ["--device"] if device else ["--no-device"]


def test_every_method_through_the_registry(plugin, driver, lean):
    done = subprocess.run([driver, plugin, lean, *kernels()], capture_output=True, text=True, timeout=120)
    print(done.stdout)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 0, f"{failed or done.stderr}"
    passed = re.search(r"^(\d+) passed, 0 failed$", done.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 408


def test_driver_fails_on_a_library_that_is_no_plugin(driver, lean):
    done = subprocess.run([driver, lean, lean], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "FAIL" in done.stdout
