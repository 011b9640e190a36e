"""Fixtures for the outputs of the native build. Imports nothing of vlkv, so a GPU machine needs only pytest.

`tests/conftest.py` has them for all tests. `make test-gpu`, which leaves out that file, names this module with -p.
"""

import os
from pathlib import Path

import pytest

BUILD = Path(os.environ.get("VLKV_BUILD", Path(__file__).parents[1] / "build" / "native"))
"""The folder in which `make test-native` builds the plugin and its driver."""


def native_file(name: str) -> Path:
    """Returns a file of the native build, or skips the test if there is none."""
    path = BUILD / name
    if not path.is_file():
        pytest.skip(
            f"no {path.name} in {BUILD}: the build found no GoogleTest or TensorRT headers (TENSORRT_ROOT)"
        )
    return path


@pytest.fixture(scope="session")
def plugin() -> Path:
    """Returns the plugin library."""
    return native_file("plugin/libvlkv_tensorrt.so")


@pytest.fixture(scope="session")
def driver() -> Path:
    """Returns the program that calls the plugin's methods."""
    return native_file("tests/plugin/vlkv_plugin_driver")


@pytest.fixture(scope="session")
def emulated() -> Path:
    """Returns ONNX Runtime's operators with those of the CUDA provider, on the CPU's and over emulated kernels."""
    return native_file("cpp/tests/libvlkv_emulated_operators.so")
