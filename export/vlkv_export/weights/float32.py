"""Weights in float32: nothing is coded."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from vlkv_export.watch import Watch


def code(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> int:
    """Leave all weights to the conversion to float32; see `registry.Format`."""
    return 0
