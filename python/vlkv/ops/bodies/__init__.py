"""The operators' public definitions, ONNX functions of standard operators, run in ONNX Runtime.

`python -m vlkv_export.ops` writes the files. ONNX Runtime is imported when the first file is opened.
"""

from __future__ import annotations

import importlib
import struct
from functools import lru_cache
from importlib import resources
from typing import Any


@lru_cache(maxsize=16)
def session(name: str, attributes: tuple[tuple[str, float], ...] = ()) -> Any:
    """Open a body with the given float attributes of its node. Sessions are cached."""
    model = resources.files(__name__).joinpath(f"{name}.onnx").read_bytes()
    for attribute, number in attributes:
        model = with_attribute(model, attribute, number)
    from vlkv.ops.session_options import session_options

    onnxruntime = importlib.import_module("onnxruntime")
    return onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])


def with_attribute(model: bytes, name: str, number: float) -> bytes:
    """Set a float attribute in a serialized model: an AttributeProto's name, then its float (fields 1, 2)."""
    opening = b"\n" + bytes([len(name)]) + name.encode() + b"\x15"
    before, found, after = model.partition(opening)
    if not found or opening in after:
        raise RuntimeError(f"the shipped body does not have one float attribute {name}")
    return before + opening + struct.pack("<f", number) + after[4:]
