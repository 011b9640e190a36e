"""Mistral: grouped attention, no biases, a sliding window."""

from __future__ import annotations

from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.graph.decoder import build_decoder
from vlkv_export.models.spec import TextModel
from vlkv_export.models.text.decoder import Defaults, read_decoder, tensors, unexpected_biases


def read(config: Fields, text: Fields) -> TextConfig:
    """Read `text_config` with the defaults of `MistralConfig`."""
    return read_decoder(config, text, Defaults("mistral", 14336, 4096 * 32, 8, 4096), frozenset())


MODEL = TextModel(read, tensors, unexpected_biases, build_decoder)
