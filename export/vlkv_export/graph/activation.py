"""Activation functions by the names that configurations use."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.graph.builder import Builder

SUPPORTED = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish")


def activate(b: Builder, x: ir.Value, name: str) -> ir.Value:
    """`name` applied to `x`; the reader has refused names that are not in `SUPPORTED`."""
    if name in ("silu", "swish"):
        return b.op.Swish(x)
    if name == "quick_gelu":
        return b.op.Swish(x, alpha=1.702)
    if name == "relu":
        return b.op.Relu(x)
    return b.op.Gelu(x, approximate="none" if name == "gelu" else "tanh")
