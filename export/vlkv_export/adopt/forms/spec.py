"""The records of a recognised attention, and the interface of a form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from vlkv.errors import CheckpointError


@dataclass(frozen=True)
class Caches:
    """One layer's caches: graph inputs `[B,Hkv,past,D]`, graph outputs `[B,Hkv,past+S,D]`; sizes from the folder."""

    layer: int
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    query_heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Rotary:
    """Rotary positions that the attention applies itself: tables `[positions, D/2]`, and whether pairs are adjacent."""

    cos: ir.Value
    sin: ir.Value
    interleaved: bool
    dim: int


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    Fields:
        caches: the layer's caches.
        query: `[B,S,Hq*D]`, or with `query_split` `[B,Hq,S,D]`; if `key` is None, keys and values follow the queries
            in its last dimension.
        key, value: `[B,S,Hkv*D]`, or with `key_split` `[B,Hkv,S,D]`.
        scale: the scale of scores.
        result: the attention's result, which is replaced.
        result_split: whether the result is `[B,Hq,S,D]`; otherwise `[B,S,Hq*D]`.
        rotary: rotary positions that must still be applied to query and key.
        window: the sliding window in tokens, including the query's own; None for none.
    """

    caches: Caches
    query: ir.Value
    key: ir.Value | None
    value: ir.Value | None
    scale: float
    result: ir.Value
    result_split: bool = False
    query_split: bool = False
    key_split: bool = False
    rotary: Rotary | None = None
    window: int | None = None


Form = Callable[[Caches], Attention | None]
"""Matches the attention over one layer's caches; returns None if it has another form.

Raises:
    CheckpointError: it has this form, but with a feature that can't be converted.
"""


def refuse(node: ir.Node, problem: str) -> CheckpointError:
    """The error for a node that can't be converted."""
    return CheckpointError(f"node {node.name!r} ({node.op_type}): {problem}")
