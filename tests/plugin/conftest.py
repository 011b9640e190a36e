"""Where the plugin and its driver were built: `make test-native`, or the folder that VLKV_BUILD names."""

import os
from pathlib import Path

import pytest

BUILD = Path(os.environ.get("VLKV_BUILD", Path(__file__).parents[2] / "build" / "native"))


def _built(name: str) -> Path:
    path = BUILD / name
    if not path.is_file():
        pytest.skip(f"no {path.name} in {BUILD}: the build found no TensorRT headers (TENSORRT_ROOT)")
    return path


@pytest.fixture(scope="session")
def plugin() -> Path:
    """Return the path of the plugin library."""
    return _built("plugin/libvlkv_tensorrt.so")


@pytest.fixture(scope="session")
def driver() -> Path:
    """Return the path of the program that calls the plugin's methods."""
    return _built("tests/plugin/vlkv_plugin_driver")
