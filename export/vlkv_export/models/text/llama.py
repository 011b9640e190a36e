"""Llama: multi-head or grouped attention, optional biases."""

from __future__ import annotations

from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import ATTENTION, MLP, Defaults, read_decoder, tensors, unexpected_biases


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `LlamaConfig`."""
    biases = frozenset(ATTENTION if text.boolean("attention_bias", False) else ())
    biases |= frozenset(MLP if text.boolean("mlp_bias", False) else ())
    return read_decoder(config, text, Defaults("llama", 11008, 2048, None, None), biases)


MODEL = TextModel(read, tensors, unexpected_biases, build_decoder)
