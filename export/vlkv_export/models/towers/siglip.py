"""SigLIP's vision tower: no class token, patch embedding with a bias, learned positions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import Selection, Tower
from vlkv_export.models.towers.encoder import Defaults, block_tensors, encode, patch_embeddings, read_encoder


def read(config: Fields, vision: Fields, selection: Selection) -> VisionConfig:
    """Read the tower with the defaults of `SiglipVisionConfig`."""
    defaults = Defaults("siglip_vision_model", 16, "gelu_pytorch_tanh", 1e-6, 0)
    return read_encoder(config, vision, selection, defaults)


def tensors(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the embeddings and of the layers that the features need."""
    hidden, patch, name = vision.hidden, vision.patch_size, vision.name
    yield f"{name}.embeddings.patch_embedding.weight", (hidden, vision.channels, patch, patch)
    yield f"{name}.embeddings.patch_embedding.bias", (hidden,)
    yield f"{name}.embeddings.position_embedding.weight", (vision.patches, hidden)
    yield from block_tensors(vision)


def build(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    """Map pictures `[N,3,H,W]` to the concatenated features of the selected layers, `[N,P,hidden * layers]`."""
    with b.scope("embeddings"):
        patches = patch_embeddings(b, pixels, config)
        x = b.op.Add(patches, b.weight(f"{config.name}.embeddings.position_embedding.weight"))
    return encode(b, x, config)


TOWER = Tower(read, tensors, build)
