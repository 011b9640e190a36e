"""Fixtures: what the native build made. Imports nothing of vlkv, so that a GPU's machine needs pytest alone.

`tests/conftest.py` has them for all tests; `make test-gpu`, which leaves that file out, names this module with -p.
"""

import os
from pathlib import Path

import pytest

BUILD = Path(os.environ.get("VLKV_BUILD", Path(__file__).parents[1] / "build" / "native"))
"""Where `make test-native` built the plugin and its driver."""


def native_file(name: str) -> Path:
    """A file of the native build; the test skips where there is none."""
    path = BUILD / name
    if not path.is_file():
        pytest.skip(f"no {path.name} in {BUILD}: the build found no TensorRT headers (TENSORRT_ROOT)")
    return path


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The plugin library."""
    return native_file("plugin/libvlkv_tensorrt.so")


@pytest.fixture(scope="session")
def driver() -> Path:
    """The program that calls the plugin's methods."""
    return native_file("tests/plugin/vlkv_plugin_driver")
