"""Self-attention over a cache that is updated in place, and the score of the observation window.

B prompts, S tokens of this call, W observed rows, C cache slots, Hq query heads, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vlkv.ops.constants import THRESHOLD
from vlkv_export.checkpoint import TextConfig
from vlkv_export.graph.builder import Builder

INT64 = ir.DataType.INT64


@dataclass(frozen=True)
class Rows:
    """The rows of one call: their numbers `[S]`, and the indices `[B,W]` of the observed rows."""

    number: ir.Value
    observed: ir.Value
    gather: ir.Value
    padding: ir.Value


@dataclass(frozen=True)
class Call:
    """What all layers of one call share: RoPE's tables and the rows."""

    cos: ir.Value
    sin: ir.Value
    rows: Rows


@dataclass(frozen=True)
class Heads:
    """Sizes of one layer's attention: query heads, key/value heads, head dimension, and the scale of scores.

    `window` is how many tokens each sees, itself with them; 0 for all.
    """

    query: int
    kv: int
    dim: int
    scale: float
    window: int = 0


def rotary_tables(b: Builder, position_ids: ir.Value, text: TextConfig) -> tuple[ir.Value, ir.Value]:
    """Cos and sin `[B,S,D/2]` of the positions, in float32 as transformers computes them, then in the graph's dtype."""
    with b.scope("rope"):
        frequency = b.op.Constant(value=ir.tensor(text.rope.inv_freq, name="inv_freq"))
        position = b.op.Cast(b.op.Unsqueeze(position_ids, [-1]), to=ir.DataType.FLOAT)
        angle = b.op.Mul(position, frequency)
        tables = []
        for table in (b.op.Cos(angle), b.op.Sin(angle)):
            if text.rope.attention_factor != 1.0:
                table = b.op.Mul(table, float(text.rope.attention_factor))
            tables.append(table if b.dtype == ir.DataType.FLOAT else b.op.Cast(table, to=b.dtype))
        return tables[0], tables[1]


def call_rows(b: Builder, position_ids: ir.Value, row_index: ir.Value) -> Rows:
    """The `Rows` of a decoder whose inputs are `position_ids [B,S]` and `row_index [B,W]`."""
    with b.scope("rows"):
        tokens = b.op.Squeeze(b.op.Shape(position_ids, start=1, end=2), [0])
        number = b.op.Range(0, tokens, 1)
        padding = b.op.Less(row_index, 0)
        gather = b.op.Unsqueeze(b.op.Max(row_index, 0), [-1])
        return Rows(number, row_index, gather, padding)


def shared_values(b: Builder, position_ids: ir.Value, row_index: ir.Value, text: TextConfig) -> Call:
    """The `Call` of a decoder whose inputs are `position_ids [B,S]` and `row_index [B,W]`."""
    return Call(*rotary_tables(b, position_ids, text), call_rows(b, position_ids, row_index))


def attend(
    b: Builder,
    x: ir.Value,
    call: Call,
    layer: int,
    caches: tuple[ir.Value, ir.Value],
    length: ir.Value,
    text: TextConfig,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value, ir.Value]:
    """One layer's attention.

    Args:
        b: the builder.
        x: normalised hidden states `[B,S,hidden]`.
        call: the values that the layers share.
        layer: the layer's number.
        caches: keys and values `[B,Hkv,C,D]`.
        length: valid slots before this call `[B]`.
        text: the text model's sizes.

    Returns:
        The projected result `[B,S,hidden]`, both updated caches, score `[B,Hkv,C]` and sparsity `[B]`.
    """
    name = f"text.layers.{layer}.self_attn"
    heads, kv_heads, dim = text.query_heads, text.kv_heads, text.head_dim
    query, key, value = (b.linear(x, f"{name}.{part}_proj") for part in "qkv")
    if text.head_norms:
        query = _head_norm(b, query, f"{name}.q_norm", heads, text)
        key = _head_norm(b, key, f"{name}.k_norm", kv_heads, text)
    query = b.op.RotaryEmbedding(query, call.cos, call.sin, num_heads=heads)
    key = b.op.RotaryEmbedding(key, call.cos, call.sin, num_heads=kv_heads)
    sizes = Heads(heads, kv_heads, dim, dim**-0.5, text.window(layer))
    y, keys, values, score, sparsity = attend_over_cache(
        b, query, key, value, call.rows, caches, length, sizes
    )
    return b.linear(y, f"{name}.o_proj"), keys, values, score, sparsity


def attend_over_cache(
    b: Builder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    rows: Rows,
    caches: tuple[ir.Value, ir.Value],
    length: ir.Value,
    heads: Heads,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value, ir.Value]:
    """Attention over the cache; graph passes match exactly these nodes.

    Args:
        b: the builder.
        query: `[B,S,Hq*D]`, with positions.
        key: `[B,S,Hkv*D]`, with positions.
        value: `[B,S,Hkv*D]`.
        rows: the rows of the call.
        caches: keys and values `[B,Hkv,C,D]`.
        length: valid slots before this call `[B]`.
        heads: the layer's sizes.

    Returns:
        The result `[B,S,Hq*D]`, both updated caches, score `[B,Hkv,C]` and sparsity `[B]`.
    """
    keys = b.op.TensorScatter(caches[0], _split(b, key, heads.kv, heads.dim), length)
    values = b.op.TensorScatter(caches[1], _split(b, value, heads.kv, heads.dim), length)

    slots = b.op.Range(0, b.op.Squeeze(b.op.Shape(keys, start=2, end=3), [0]), 1)
    last = b.op.Unsqueeze(b.op.Add(b.op.Unsqueeze(length, [-1]), rows.number), [1, 3])
    visible = b.op.LessOrEqual(slots, last)
    if heads.window:
        # slots are in order of position in a prompt; in decoding there are never more of them than the window has
        visible = b.op.And(visible, b.op.Greater(slots, b.op.Sub(last, heads.window)))
    y = b.op.Attention(_split(b, query, heads.query, heads.dim), keys, values, visible, scale=heads.scale)
    y = b.op.Reshape(b.op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, heads.query * heads.dim])

    observed = _split(b, b.op.GatherND(query, rows.gather, batch_dims=1), heads.query, heads.dim)
    position = b.op.Add(b.op.Unsqueeze(length, [-1]), rows.observed)
    position = b.op.Where(rows.padding, -1, position)
    score, sparsity = b.vlkv.Score(
        observed, keys, position, scale=heads.scale, threshold=THRESHOLD, _outputs=2
    )
    return y, keys, values, score, sparsity


def _head_norm(b: Builder, x: ir.Value, name: str, heads: int, text: TextConfig) -> ir.Value:
    """Normalise each head of `[B,S,heads*D]` separately."""
    x = b.op.Reshape(x, [0, 0, heads, text.head_dim])
    x = b.op.RMSNormalization(x, b.weight(f"{name}.weight"), epsilon=text.eps)
    return b.op.Reshape(x, [0, 0, heads * text.head_dim])


def _split(b: Builder, x: ir.Value, heads: int, dim: int) -> ir.Value:
    """Reshape `[B,S,heads*D]` to `[B,heads,S,D]`."""
    return b.op.Transpose(b.op.Reshape(x, [0, 0, heads, dim]), perm=[0, 2, 1, 3])
