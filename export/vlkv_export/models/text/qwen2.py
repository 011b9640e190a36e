"""Qwen2: grouped attention with biases in q, k and v, and an optional sliding window in upper layers."""

from __future__ import annotations

from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import Defaults, read_decoder, tensors, unexpected_biases


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `Qwen2Config`."""
    defaults = Defaults("qwen2", 22016, 32768, 32, 4096, 28, vocab=151936)
    return read_decoder(config, text, defaults, frozenset("qkv"))


MODEL = TextModel(read, tensors, unexpected_biases, build_decoder, {"bos": None, "eos": None, "pad": None})
