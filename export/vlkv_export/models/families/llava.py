"""LLaVA 1.5: a picture is one square tile, and a two-layer projector maps its features to the text model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import onnx_ir as ir

from vlkv.storage.image_facts import ImageFacts
from vlkv_export.checkpoint.facts import Checkpoint, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape, linear
from vlkv_export.checkpoint.processor import read_image as read_one_tile
from vlkv_export.checkpoint.settings import read_activation
from vlkv_export.graph.activation import activate
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import Family, ImageSource, Tower

NEWLINE = "image_newline"
Widen = Callable[[Builder, ir.Value, Checkpoint], ir.Value]
VISION_WHERE_ABSENT: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""The tower that `LlavaConfig` assumes if there is no `vision_config` at all."""

PREFIXES = (
    (re.compile(r"(?:model\.)?(?:language_model\.)?lm_head\."), "lm_head."),
    (re.compile(r"(?:model\.)?language_model\.(?:model\.)?"), "text."),
    (re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?"), "vision."),
    (re.compile(r"(?:model\.)?multi_modal_projector\."), "projector."),
    (re.compile(r"(?:model\.)?image_newline$"), "image_newline"),
)
"""Tensor name prefixes of both generations of transformers."""


def read(config: Fields) -> Projector:
    """Read the two-layer projector: `projector_hidden_act`, `multimodal_projector_bias`."""
    return Projector(
        read_activation(config, "projector_hidden_act", "gelu"),
        config.boolean("multimodal_projector_bias", True),
    )


def tensors(vision: VisionConfig, projector: Projector, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the projector and, where there is one, of the newline."""
    features = vision.hidden * len(vision.feature_layers)
    for layer in range(1, projector.layers + 1):
        yield from linear(f"projector.linear_{layer}", text.hidden, features, projector.bias)
        features = text.hidden
    if projector.newline:
        yield NEWLINE, (text.hidden,)


def read_image(source: ImageSource) -> ImageFacts:
    """Read the image facts: every picture is one tile."""
    return read_one_tile(source.processor, source.vision, source.token)


def build(checkpoint: Checkpoint, dtype: str, tower: Tower) -> ir.Model:
    """Build the `vision` graph: tiles `[N,3,H,W]` to features `[N,P,hidden]`.

    If the checkpoint has an `image_newline`, that vector is the last of the P.
    """
    return graph_of(checkpoint, dtype, tower, checkpoint.vision, checkpoint.image.tile_features)


def graph_of(
    checkpoint: Checkpoint,
    dtype: str,
    tower: Tower,
    config: VisionConfig,
    rows: int,
    widen: Widen | None = None,
) -> ir.Model:
    """The graph of a tower and the projector, named like the tower; it gives `rows` features a tile.

    `widen` takes the tower's features to those that the projector gets.
    """
    b = Builder(config.name, checkpoint.tensors, dtype, checkpoint.placed)
    dynamic = config.image_size == 0
    size: list[int | str] = ["high", "wide"] if dynamic else [config.image_size, config.image_size]
    pixels = b.input("pixel_values", ir.DataType.FLOAT, ["N", config.channels, *size])
    features = tower.build(b, pixels, config)
    if widen is not None:
        features = widen(b, features, checkpoint)
    with b.scope("projector"):
        if checkpoint.projector.norm_eps is not None:
            name, eps = "projector.projector_layernorm", checkpoint.projector.norm_eps
            weight, bias = b.weight(f"{name}.weight"), b.weight(f"{name}.bias")
            features = b.op.LayerNormalization(features, weight, bias, epsilon=eps)
        for layer in range(1, checkpoint.projector.layers + 1):
            if layer > 1:
                features = activate(b, features, checkpoint.projector.activation)
            features = b.linear(features, f"projector.linear_{layer}")
    if b.has(NEWLINE):
        features = b.op.Concat(features, _newlines(b, pixels, checkpoint.text.hidden), axis=1)
    features = b.op.Cast(features, to=ir.DataType.FLOAT)
    shape = ["N", "P" if dynamic else rows, checkpoint.text.hidden]
    b.output(features, "image_features", ir.DataType.FLOAT, shape)
    return b.model()


def _newlines(b: Builder, pixels: ir.Value, hidden: int) -> ir.Value:
    """The newline vector, repeated for each tile: `[N,1,hidden]`."""
    newline = b.op.Reshape(b.weight(NEWLINE), [1, 1, hidden])
    return b.op.Expand(newline, b.op.Concat(b.op.Shape(pixels, start=0, end=1), [1, hidden], axis=0))


FAMILY = Family(
    model_type="llava",
    tower="clip_vision_model",
    text="llama",
    vision_where_absent=VISION_WHERE_ABSENT,
    prefixes=PREFIXES,
    read=read,
    read_image=read_image,
    tensors=tensors,
    build=build,
)
