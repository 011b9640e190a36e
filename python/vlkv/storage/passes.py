"""The lowering passes for ONNX Runtime on CPUs that an engine may lack: it is right without them."""

from __future__ import annotations

from collections.abc import Sequence

from vlkv.errors import EngineError

OPTIONAL_PASSES = ("multi_head_attention", "native_attention", "fused_linear", "transposed_weights")
"""In their usual order. The first is for vision towers; the others may run in any order."""


def check_passes(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the passes. Raises `EngineError` for a name that is unknown or given twice."""
    for at, name in enumerate(names):
        if name not in OPTIONAL_PASSES:
            raise EngineError(f"--passes has {name!a:.60}; known: {', '.join(OPTIONAL_PASSES)}")
        if name in names[:at]:
            raise EngineError(f"--passes has {name} twice; each runs once")
    return tuple(names)
