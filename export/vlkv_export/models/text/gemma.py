"""Gemma: norm weights are offsets from 1, embeddings are scaled by the square root of their size, GELU."""

from __future__ import annotations

from dataclasses import replace

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import ATTENTION, Defaults, read_decoder, tensors, unexpected_biases


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `GemmaConfig`; its `gelu` is the tanh approximation."""
    if text.boolean("use_bidirectional_attention", False):
        raise CheckpointError(f"{text.where}: use_bidirectional_attention true is not supported")
    biases = frozenset(ATTENTION if text.boolean("attention_bias", False) else ())
    defaults = Defaults(
        "gemma",
        24576,
        8192,
        16,
        None,
        vocab=256000,
        hidden=3072,
        layers=28,
        query_heads=16,
        head_dim=256,
        activation="gelu_pytorch_tanh",
        tied=True,
    )
    found = read_decoder(config, text, defaults, biases)
    activation = "gelu_new" if found.activation == "gelu" else found.activation
    scale = found.hidden**0.5
    return replace(found, activation=activation, norm_offset=1.0, embed_scale=scale)


MODEL = TextModel(read, tensors, unexpected_biases, build_decoder, {"bos": 2, "eos": 1, "pad": 0})
