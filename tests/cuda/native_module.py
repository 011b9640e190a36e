"""Loads a native module that was installed with CUDA kernels, on a machine without a driver: `make cuda-python`.

python tests/cuda/native_module.py FOLDER
"""

from __future__ import annotations

import sys
from ctypes import CDLL, create_string_buffer
from pathlib import Path

ENTRIES = ("score", "evict", "attend", "move_slots", "pick", "draw")
WORKSPACE = ("score", "evict", "attend")
"""Those that take a workspace and its size."""


def main(folder: Path) -> None:
    """Raises `AssertionError` where the module is not whole."""
    # an editable installation of vlkv would take precedence over the path
    sys.meta_path[:] = [found for found in sys.meta_path if "Redirecting" not in type(found).__name__]
    sys.path.insert(0, str(folder.resolve()))
    import onnxruntime

    from vlkv.backend import kernels
    from vlkv.backend.cuda import compute_capability
    from vlkv.errors import EngineError
    from vlkv.ops.native import native

    path = Path(str(native().__file__))
    assert path.is_relative_to(folder.resolve()), f"{path} is another installation"
    library = CDLL(str(path))
    assert library.vlkv_has_cuda() == 1, f"{path} has no CUDA kernels"
    said = create_string_buffer(200)
    for name in ENTRIES:
        entry, sizes = getattr(library, f"vlkv_{name}_cuda"), 2 if name in WORKSPACE else 0
        assert entry(None, *[None] * sizes, None, said, len(said)) != 0, f"{name} takes no parameters"
        assert said.value, f"{name} fails without a word"
    assert kernels.find() is not None
    # the operators of the CUDA provider are registered; a session would need a GPU
    onnxruntime.SessionOptions().register_custom_ops_library(str(path))
    try:
        print(f"{path.name} has CUDA kernels; this machine has a GPU, of {compute_capability(())}")
    except EngineError as error:
        print(f"{path.name} has CUDA kernels; without a GPU: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
