"""A Hugging Face LLaVA checkpoint on disk: what it is and where each weight lies. Weights are never read."""

from vlkv_export.checkpoint.facts import (
    Checkpoint,
    Dtype,
    Projector,
    Rope,
    Tensor,
    TextConfig,
    VisionConfig,
)
from vlkv_export.checkpoint.reader import read_checkpoint

__all__ = [
    "Checkpoint",
    "Dtype",
    "Projector",
    "Rope",
    "Tensor",
    "TextConfig",
    "VisionConfig",
    "read_checkpoint",
]
