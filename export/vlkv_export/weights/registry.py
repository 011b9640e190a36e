"""The formats that an engine's weights can have, by the name that `vlkv build --weights` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from vlkv_export.watch import Watch
from vlkv_export.weights import float32, int8

Format = Callable[[Path, Path, dict[str, ir.Model], Watch], int]
"""Writes the weights that the format codes into an engine's folder and makes the graphs read them.

Its arguments are the graph directory, the folder of the engine, the graphs by name (changed in place) and who is told
of progress. It returns how many nodes it rewrote. Weights that it leaves alone become float32.
"""

FORMATS: dict[str, Format] = {"float32": float32.code, "int8": int8.code}
