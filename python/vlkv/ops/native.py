"""The compiled kernels, `vlkv._native`, loaded when first used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from vlkv.errors import EngineError


@cache
def native() -> Any:
    """The extension module; where it was not built, an `EngineError` that says what works without it."""
    try:
        return import_module("vlkv._native")
    except ImportError as error:
        raise EngineError(
            f"vlkv's native operators were not built ({error}); install vlkv with a C++ compiler at hand, "
            "or build the engine with --operators functions"
        ) from None


def describe() -> str:
    """What the operators run on: the vector instructions in use, or that only the ONNX bodies are there."""
    try:
        return f"native ({native().simd()})"
    except EngineError:
        return "ONNX functions only (the native ones were not built)"
