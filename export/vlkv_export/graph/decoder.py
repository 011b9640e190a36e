"""The `decoder` graph: one graph serves whole prompts, chunks and single tokens, so the weights exist once."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.checkpoint import Checkpoint, TextConfig
from vlkv_export.graph.activation import activate
from vlkv_export.graph.attention import INT64, attend, shared_values
from vlkv_export.graph.builder import Builder

FLOAT = ir.DataType.FLOAT


def build_decoder(checkpoint: Checkpoint, dtype: str) -> ir.Model:
    """Build the decoder of a checkpoint; `docs/structure.md` lists its inputs and outputs."""
    text = checkpoint.text
    b = Builder("decoder", checkpoint.tensors, dtype, checkpoint.placed)
    x = b.input("inputs_embeds", FLOAT, ["B", "S", text.hidden])
    position_ids = b.input("position_ids", INT64, ["B", "S"])
    row_index = b.input("row_index", INT64, ["B", "W"])
    length = b.input("length", INT64, [text.layers, "B"])

    def cache(kind: str, layer: int) -> ir.Value:
        shape: list[int | str] = ["B", text.kv_heads, f"C_{layer}", text.head_dim]
        return b.input(f"{kind}_cache.{layer}", b.dtype, shape)

    caches = [(cache("key", layer), cache("value", layer)) for layer in range(text.layers)]
    call = shared_values(b, position_ids, row_index, text)
    x = x if b.dtype == FLOAT else b.op.Cast(x, to=b.dtype)
    updated, scores, sparsities = [], [], []
    for layer in range(text.layers):
        with b.scope(f"layer.{layer}"):
            y = _norm(b, x, f"text.layers.{layer}.input_layernorm", text)
            valid = b.op.Gather(length, layer, axis=0)
            y, keys, values, score, sparsity = attend(b, y, call, layer, caches[layer], valid, text)
            x = b.op.Add(x, y)
            y = _norm(b, x, f"text.layers.{layer}.post_attention_layernorm", text)
            x = b.op.Add(x, _mlp(b, y, f"text.layers.{layer}.mlp", text))
        updated.append((keys, values))
        scores.append(score)
        sparsities.append(b.op.Unsqueeze(sparsity, [0]))
    _logits(b, x, position_ids, text)
    for layer in range(text.layers):
        shape: list[int | str] = ["B", text.kv_heads, f"C_{layer}", text.head_dim]
        for kind, value in zip(("key", "value"), updated[layer], strict=True):
            b.output(value, f"new_{kind}_cache.{layer}", b.dtype, shape)
    for layer, score in enumerate(scores):
        b.output(score, f"score.{layer}", FLOAT, ["B", text.kv_heads, f"C_{layer}"])
    b.output(b.op.Concat(*sparsities, axis=0), "sparsity", FLOAT, [text.layers, "B"])
    return b.model()


def _norm(b: Builder, x: ir.Value, name: str, text: TextConfig) -> ir.Value:
    weight = b.weight(f"{name}.weight")
    if text.norm_offset:
        weight = b.op.Add(weight, text.norm_offset)
    return b.op.RMSNormalization(x, weight, epsilon=text.eps)


def _mlp(b: Builder, x: ir.Value, name: str, text: TextConfig) -> ir.Value:
    gate = activate(b, b.linear(x, f"{name}.gate_proj"), text.activation)
    return b.linear(b.op.Mul(gate, b.linear(x, f"{name}.up_proj")), f"{name}.down_proj")


def _logits(b: Builder, x: ir.Value, position_ids: ir.Value, text: TextConfig) -> None:
    """Logits `[B,V]` of each prompt's last valid token; padding has position -1 and is at the right."""
    with b.scope("logits"):
        x = b.op.GatherND(x, last_row(b, position_ids), batch_dims=1)
        x = _norm(b, x, "text.norm", text)
        logits = b.op.Cast(b.linear(x, "lm_head"), to=FLOAT)
    b.output(logits, "logits", FLOAT, ["B", text.vocab])


def last_row(b: Builder, position_ids: ir.Value) -> ir.Value:
    """The number `[B,1]` of each prompt's last valid row."""
    valid = b.op.Cast(b.op.GreaterOrEqual(position_ids, 0), to=INT64)
    return b.op.Max(b.op.Sub(b.op.ReduceSum(valid, [1], keepdims=1), 1), 0)
