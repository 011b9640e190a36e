"""The compiled kernels, `vlkv._native`, loaded when first used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from vlkv.errors import EngineError


@cache
def native() -> Any:
    """The extension module. Raises `EngineError`, which names the alternative, if it was not built."""
    try:
        return import_module("vlkv._native")
    except ImportError as error:
        raise EngineError(
            f"vlkv's native operators were not built ({error}); install vlkv with a C++ compiler available, "
            "or build the engine with --operators functions"
        ) from None


def describe() -> str:
    """Describes the operators' implementation: the vector instructions in use, or ONNX bodies only."""
    try:
        return f"native ({native().simd()})"
    except EngineError:
        return "ONNX functions only (the native ones were not built)"
