"""Reads a Hugging Face folder: the model's configuration and the location of each weight, without reading weights."""

from vlkv_export.checkpoint.facts import (
    Checkpoint,
    Dtype,
    Projector,
    Rope,
    Tensor,
    TextConfig,
    VisionConfig,
)

__all__ = [
    "Checkpoint",
    "Dtype",
    "Projector",
    "Rope",
    "Tensor",
    "TextConfig",
    "VisionConfig",
]
