"""Qwen2: grouped attention with biases in q, k and v, and an optional sliding window in upper layers."""

from __future__ import annotations

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import Defaults, read_decoder, tensors, unexpected_biases


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `Qwen2Config`."""
    refuse_window(text)
    defaults = Defaults("qwen2", 22016, 32768, 32, None, vocab=151936)
    return read_decoder(config, text, defaults, frozenset("qkv"))


def refuse_window(text: Fields) -> None:
    """Raise `CheckpointError` if some layers have a sliding window."""
    if text.boolean("use_sliding_window", False):
        raise CheckpointError(f"{text.where}: use_sliding_window true is not supported; set it to false")


MODEL = TextModel(read, tensors, unexpected_biases, build_decoder, {"bos": None, "eos": None, "pad": None})
