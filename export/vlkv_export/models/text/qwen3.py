"""Qwen3: grouped attention with a norm over each head's queries and keys."""

from __future__ import annotations

from dataclasses import replace

from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import ATTENTION, Defaults, read_decoder, tensors, unexpected_biases


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `Qwen3Config`."""
    biases = frozenset(ATTENTION if text.boolean("attention_bias", False) else ())
    defaults = Defaults("qwen3", 22016, 32768, 32, 4096, 28, vocab=151936, head_dim=128)
    return replace(read_decoder(config, text, defaults, biases), head_norms=True)


MODEL = TextModel(read, tensors, unexpected_biases, build_decoder, {"bos": None, "eos": None, "pad": None})
