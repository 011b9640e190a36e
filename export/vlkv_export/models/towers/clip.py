"""CLIP's vision tower: a class token, learned positions, layer norms before each block."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape, linear, norm
from vlkv_export.checkpoint.settings import MAX_HEADS, MAX_LAYERS, read_activation, read_feature_layers
from vlkv_export.graph.activation import activate
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import Tower


def read(config: Fields, vision: Fields) -> VisionConfig:
    """Read the tower: `vision_config`, `vision_feature_layer`, `vision_feature_select_strategy`."""
    layers = vision.integer("num_hidden_layers", 12, high=MAX_LAYERS)
    hidden = vision.integer("hidden_size", 768)
    heads = vision.integer("num_attention_heads", 12, high=MAX_HEADS)
    if hidden % heads:
        raise CheckpointError(
            f"{vision.where}: hidden_size {hidden} is not a multiple of {heads} attention heads"
        )
    image_size = vision.integer("image_size", 224, high=1 << 14)
    patch_size = vision.integer("patch_size", 32)
    if patch_size > image_size:
        raise CheckpointError(
            f"{vision.where}: patch_size {patch_size} is larger than image_size {image_size}"
        )
    select = config.string("vision_feature_select_strategy", "default")
    if select not in ("default", "full"):
        raise config.fail("vision_feature_select_strategy", '"default" or "full"')
    return VisionConfig(
        architecture="clip_vision_model",
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=vision.integer("intermediate_size", 3072),
        image_size=image_size,
        patch_size=patch_size,
        channels=vision.integer("num_channels", 3, low=3, high=3),
        activation=read_activation(vision, "hidden_act", "quick_gelu"),
        eps=vision.number("layer_norm_eps", 1e-5, high=1.0),
        feature_layers=read_feature_layers(config, layers),
        select="full" if select == "full" else "default",
    )


def tensors(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the embeddings and of the layers that the features need."""
    hidden, patch = vision.hidden, vision.patch_size
    yield "vision.embeddings.class_embedding", (hidden,)
    yield "vision.embeddings.patch_embedding.weight", (hidden, vision.channels, patch, patch)
    yield "vision.embeddings.position_embedding.weight", (vision.patches + 1, hidden)
    yield from norm("vision.pre_layrnorm", hidden)
    for layer in range(vision.used_layers):
        name = f"vision.encoder.layers.{layer}"
        yield from norm(f"{name}.layer_norm1", hidden)
        for part in ("q", "k", "v", "out"):
            yield from linear(f"{name}.self_attn.{part}_proj", hidden, hidden, True)
        yield from norm(f"{name}.layer_norm2", hidden)
        yield from linear(f"{name}.mlp.fc1", vision.intermediate, hidden, True)
        yield from linear(f"{name}.mlp.fc2", hidden, vision.intermediate, True)


def build(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    """Pictures `[N,3,H,W]` to the features of the chosen layers, joined, `[N,P,hidden * layers]`."""
    x = _embed(b, pixels, config)
    states = {0: x}
    for index in range(config.used_layers):
        x = _layer(b, x, config, index)
        states[index + 1] = x
    chosen = [states[index] for index in config.feature_layers]
    features = chosen[0] if len(chosen) == 1 else b.op.Concat(*chosen, axis=-1)
    if config.select == "default":
        features = b.op.Slice(features, [1], [2**31], [1])
    return features


def _norm(b: Builder, x: ir.Value, name: str, eps: float) -> ir.Value:
    return b.op.LayerNormalization(x, b.weight(f"{name}.weight"), b.weight(f"{name}.bias"), epsilon=eps)


def _embed(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    with b.scope("embeddings"):
        patch = config.patch_size
        kernel = b.weight("vision.embeddings.patch_embedding.weight")
        grid = b.op.Conv(b.op.Cast(pixels, to=b.dtype), kernel, strides=[patch, patch])
        patches = b.op.Transpose(b.op.Reshape(grid, [0, config.hidden, -1]), perm=[0, 2, 1])
        pictures = b.op.Shape(pixels, start=0, end=1)
        start = b.op.Reshape(b.weight("vision.embeddings.class_embedding"), [1, 1, config.hidden])
        start = b.op.Expand(start, b.op.Concat(pictures, [1, config.hidden], axis=0))
        x = b.op.Concat(start, patches, axis=1)
        x = b.op.Add(x, b.weight("vision.embeddings.position_embedding.weight"))
        return _norm(b, x, "vision.pre_layrnorm", config.eps)


def _layer(b: Builder, x: ir.Value, config: VisionConfig, index: int) -> ir.Value:
    name = f"vision.encoder.layers.{index}"
    with b.scope(f"layer.{index}"):
        y = _norm(b, x, f"{name}.layer_norm1", config.eps)
        query, key, value = (b.linear(y, f"{name}.self_attn.{part}_proj") for part in "qkv")
        heads = {"q_num_heads": config.heads, "kv_num_heads": config.heads}
        y = b.op.Attention(query, key, value, **heads)
        x = b.op.Add(x, b.linear(y, f"{name}.self_attn.out_proj"))
        y = _norm(b, x, f"{name}.layer_norm2", config.eps)
        y = activate(b, b.linear(y, f"{name}.mlp.fc1"), config.activation)
        return b.op.Add(x, b.linear(y, f"{name}.mlp.fc2"))


TOWER = Tower(read, tensors, build)
