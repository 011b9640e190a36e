"""The library under test and its random inputs. Tests that need a device are skipped if there is none."""

import os
import secrets

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch")
gpu_library = pytest.importorskip("gpu_library")


@pytest.fixture
def seed() -> int:
    """Draws the seed of a test's inputs. A failing test prints it."""
    value = secrets.randbits(32)
    print(f"seed = {value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(scope="session")
def library() -> "gpu_library.Library":
    """Returns the kernels. VLKV_GPU_DEVICE=cpu takes those of the CPU, which checks the tests themselves."""
    device = os.environ.get("VLKV_GPU_DEVICE", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path = gpu_library.BUILD / "cpp" / "libvlkv.so"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {gpu_library.BUILD}: make test-gpu builds it")
    found = gpu_library.Library(path, device)
    assert found.has_cuda or device == "cpu", f"{path} was built without CUDA"
    return found
