"""Phi-3: queries, keys and values in one matrix, gate and up in another; long RoPE inside its trained positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.fused import Rows
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import Defaults, read_decoder, tensors, unexpected_biases

TRAINED = 4096
LONG = ("su", "yarn")
"""What Phi-3 called `longrope` before."""


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `Phi3Config`."""
    window = 1 if "sliding_window" in text else None
    defaults = Defaults("phi3", 8192, TRAINED, None, window, vocab=32064, hidden=3072, eps=1e-5)
    return read_decoder(config, _with_long_rope(text), defaults, frozenset())


def _with_long_rope(text: Fields) -> Fields:
    values: dict[str, Any] = {"original_max_position_embeddings": TRAINED}
    values |= {key: value for key, value in text.values.items() if value is not None}
    for name in ("rope_parameters", "rope_scaling"):
        given = text.child(name).values
        for key in ("type", "rope_type"):
            if given.get(key) in LONG:
                given = {**given, key: "longrope"}
        if given:
            values[name] = given
    return Fields(values, text.where)


def fused(text: TextConfig) -> Iterator[tuple[str, Rows]]:
    """The matrices that are stored as one."""
    queries, keys = text.query_heads * text.head_dim, text.kv_heads * text.head_dim
    for layer in range(text.layers):
        name = f"text.layers.{layer}"
        heads = (("q", queries), ("k", keys), ("v", keys))
        parts = tuple((f"{name}.self_attn.{part}_proj.weight", rows) for part, rows in heads)
        yield f"{name}.self_attn.qkv_proj.weight", parts
        halves = tuple((f"{name}.mlp.{part}_proj.weight", text.intermediate) for part in ("gate", "up"))
        yield f"{name}.mlp.gate_up_proj.weight", halves


MODEL = TextModel(
    read, tensors, unexpected_biases, build_decoder, {"bos": 1, "eos": 32000, "pad": 32000}, fused
)
