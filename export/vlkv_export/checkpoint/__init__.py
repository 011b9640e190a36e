"""What a Hugging Face folder holds: what it is and where each weight lies. Weights are never read."""

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
