"""What a form of attention is read into."""

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
    """Positions that the attention applies itself: tables `[positions, D/2]`, whether pairs lie side by side."""

    cos: ir.Value
    sin: ir.Value
    interleaved: bool
    dim: int


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    Fields:
        caches: the layer's.
        query: `[B,S,Hq*D]`, or with `query_split` `[B,Hq,S,D]`; where `key` is None it holds keys and values behind
            the queries, in its last dimension.
        key, value: `[B,S,Hkv*D]`, or with `key_split` `[B,Hkv,S,D]`.
        scale: of scores.
        result: what takes the place of the attention's result.
        result_split: whether that is `[B,Hq,S,D]`; otherwise `[B,S,Hq*D]`.
        rotary: positions still to be applied to query and key.
        window: how many tokens a query sees, itself included; None: all.
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
"""Reads the attention over one layer's caches; None where it has another form.

Raises:
    CheckpointError: the form is this one, with something that can't be taken over.
"""


def refuse(node: ir.Node, problem: str) -> CheckpointError:
    """The error for a node that can't be taken over."""
    return CheckpointError(f"node {node.name!r} ({node.op_type}): {problem}")
