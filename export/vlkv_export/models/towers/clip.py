"""CLIP's vision tower: a class token, learned positions, pre-norm blocks."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape, norm
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import Selection, Tower
from vlkv_export.models.towers.encoder import (
    Defaults,
    block_tensors,
    encode,
    layer_norm,
    patch_embeddings,
    read_encoder,
)


def read(config: Fields, vision: Fields, selection: Selection) -> VisionConfig:
    """Read the tower with the defaults of `CLIPVisionConfig`."""
    defaults = Defaults("clip_vision_model", 32, "quick_gelu", 1e-5, 1)
    return read_encoder(config, vision, selection, defaults)


def tensors(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the embeddings and of the layers that the features need."""
    hidden, patch, name = vision.hidden, vision.patch_size, vision.name
    yield f"{name}.embeddings.class_embedding", (hidden,)
    yield f"{name}.embeddings.patch_embedding.weight", (hidden, vision.channels, patch, patch)
    yield f"{name}.embeddings.position_embedding.weight", (vision.patches + 1, hidden)
    yield from norm(f"{name}.pre_layrnorm", hidden)
    yield from block_tensors(vision)


def build(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    """Map pictures `[N,3,H,W]` to the concatenated features of the selected layers, `[N,P,hidden * layers]`."""
    with b.scope("embeddings"):
        patches = patch_embeddings(b, pixels, config)
        pictures = b.op.Shape(pixels, start=0, end=1)
        start = b.op.Reshape(b.weight(f"{config.name}.embeddings.class_embedding"), [1, 1, config.hidden])
        start = b.op.Expand(start, b.op.Concat(pictures, [1, config.hidden], axis=0))
        x = b.op.Concat(start, patches, axis=1)
        x = b.op.Add(x, b.weight(f"{config.name}.embeddings.position_embedding.weight"))
        x = layer_norm(b, x, f"{config.name}.pre_layrnorm", config.eps)
    return encode(b, x, config)


TOWER = Tower(read, tensors, build)
