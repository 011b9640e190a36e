"""Activation functions by the names that configurations use."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.graph.builder import Builder


def activate(b: Builder, x: ir.Value, name: str) -> ir.Value:
    """Apply the activation `name` to `x`; the checkpoint's reader refuses unknown names."""
    if name in ("silu", "swish"):
        return b.op.Swish(x)
    if name == "quick_gelu":
        return b.op.Swish(x, alpha=1.702)
    if name == "relu":
        return b.op.Relu(x)
    return b.op.Gelu(x, approximate="none" if name == "gelu" else "tanh")
