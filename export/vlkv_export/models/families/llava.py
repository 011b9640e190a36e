"""LLaVA 1.5: one square picture, features through a projector of two layers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from vlkv_export.checkpoint.facts import Checkpoint, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape, linear
from vlkv_export.checkpoint.settings import read_activation
from vlkv_export.graph.activation import activate
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import Family, Tower

VISION_WHERE_ABSENT: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""What `LlavaConfig` makes its tower when there is no `vision_config` at all."""

PREFIXES = (
    (re.compile(r"(?:model\.)?(?:language_model\.)?lm_head\."), "lm_head."),
    (re.compile(r"(?:model\.)?language_model\.(?:model\.)?"), "text."),
    (re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?"), "vision."),
    (re.compile(r"(?:model\.)?multi_modal_projector\."), "projector."),
)
"""Both generations of names that transformers wrote."""


def read(config: Fields) -> Projector:
    """Read the two-layer projector: `projector_hidden_act`, `multimodal_projector_bias`."""
    return Projector(
        read_activation(config, "projector_hidden_act", "gelu"),
        config.boolean("multimodal_projector_bias", True),
    )


def tensors(vision: VisionConfig, projector: Projector, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the projector."""
    features = vision.hidden * len(vision.feature_layers)
    yield from linear("projector.linear_1", text.hidden, features, projector.bias)
    yield from linear("projector.linear_2", text.hidden, text.hidden, projector.bias)


def build(checkpoint: Checkpoint, dtype: str, tower: Tower) -> ir.Model:
    """The `vision` graph: pictures `[N,3,H,W]` to image features `[N,P,hidden]`."""
    config = checkpoint.vision
    b = Builder("vision", checkpoint.tensors, dtype)
    size = [config.image_size, config.image_size]
    pixels = b.input("pixel_values", ir.DataType.FLOAT, ["N", config.channels, *size])
    features = tower.build(b, pixels, config)
    with b.scope("projector"):
        features = b.linear(features, "projector.linear_1")
        features = activate(b, features, checkpoint.projector.activation)
        features = b.linear(features, "projector.linear_2")
    features = b.op.Cast(features, to=ir.DataType.FLOAT)
    shape: list[int | str] = ["N", checkpoint.image.tokens_per_image, checkpoint.text.hidden]
    b.output(features, "image_features", ir.DataType.FLOAT, shape)
    return b.model()


FAMILY = Family("llava", "clip_vision_model", "llama", VISION_WHERE_ABSENT, PREFIXES, read, tensors, build)
