"""What CLIP-like towers share: sizes, pre-norm blocks, selected hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.storage.manifest import MAX_LAYERS
from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape, linear, norm
from vlkv_export.checkpoint.settings import (
    MAX_HEADS,
    read_activation,
    read_feature_layers,
)
from vlkv_export.graph.activation import activate
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import Selection


@dataclass(frozen=True)
class Defaults:
    """Values that a class of towers assumes for absent fields; `prefix` tokens precede those of the patches."""

    architecture: str
    patch: int
    activation: str
    eps: float
    prefix: int


def read_select(config: Fields, selection: Selection) -> Literal["default", "full"]:
    """Return `vision_feature_select_strategy`. Raises `CheckpointError`."""
    name = "vision_feature_select_strategy"
    value = selection.strategy if selection.fixed_strategy else config.string(name, selection.strategy)
    if value == "default":
        return "default"
    if value == "full":
        return "full"
    raise config.fail(name, '"default" or "full"')


def read_encoder(config: Fields, vision: Fields, selection: Selection, defaults: Defaults) -> VisionConfig:
    """Read `vision_config`, `vision_feature_layer` and `vision_feature_select_strategy`. Raises `CheckpointError`."""
    layers = vision.integer("num_hidden_layers", 12, high=MAX_LAYERS)
    hidden = vision.integer("hidden_size", 768)
    heads = vision.integer("num_attention_heads", 12, high=MAX_HEADS)
    if hidden % heads:
        raise CheckpointError(
            f"{vision.where}: hidden_size {hidden} is not a multiple of {heads} attention heads"
        )
    image_size = vision.integer("image_size", 224, high=1 << 14)
    patch_size = vision.integer("patch_size", defaults.patch)
    if patch_size > image_size:
        raise CheckpointError(
            f"{vision.where}: patch_size {patch_size} is larger than image_size {image_size}"
        )
    return VisionConfig(
        architecture=defaults.architecture,
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=vision.integer("intermediate_size", 3072),
        image_size=image_size,
        patch_size=patch_size,
        channels=vision.integer("num_channels", 3, low=3, high=3),
        activation=read_activation(vision, "hidden_act", defaults.activation),
        eps=vision.number("layer_norm_eps", defaults.eps, high=1.0),
        feature_layers=read_feature_layers(config, layers, selection.layer),
        select=read_select(config, selection),
        prefix=defaults.prefix,
    )


def block_tensors(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the layers that the features need."""
    hidden = vision.hidden
    for layer in range(vision.used_layers):
        name = f"{vision.name}.encoder.layers.{layer}"
        yield from norm(f"{name}.layer_norm1", hidden)
        for part in ("q", "k", "v", "out"):
            yield from linear(f"{name}.self_attn.{part}_proj", hidden, hidden, True)
        yield from norm(f"{name}.layer_norm2", hidden)
        yield from linear(f"{name}.mlp.fc1", vision.intermediate, hidden, True)
        yield from linear(f"{name}.mlp.fc2", hidden, vision.intermediate, True)


def encode(b: Builder, x: ir.Value, config: VisionConfig) -> ir.Value:
    """Map embedded patches to the concatenated features of the selected layers, `[N,P,hidden * layers]`."""
    states = {0: x}
    for index in range(config.used_layers):
        x = _block(b, x, config, index)
        states[index + 1] = x
    return select(b, [states[index] for index in config.feature_layers], config)


def select(b: Builder, chosen: list[ir.Value], config: VisionConfig) -> ir.Value:
    """Concatenate the selected hidden states, without the first token if the strategy drops it."""
    features = chosen[0] if len(chosen) == 1 else b.op.Concat(*chosen, axis=-1)
    if config.select == "default":
        features = b.op.Slice(features, [1], [2**31], [1])
    return features


def patch_embeddings(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    """One vector per patch, `[N, patches, hidden]`, row-major; with a bias if the checkpoint has one."""
    name, patch = f"{config.name}.embeddings.patch_embedding", config.patch_size
    weights = [b.weight(f"{name}.{part}") for part in ("weight", "bias") if b.has(f"{name}.{part}")]
    grid = b.op.Conv(b.op.Cast(pixels, to=b.dtype), *weights, strides=[patch, patch])
    return b.op.Transpose(b.op.Reshape(grid, [0, config.hidden, -1]), perm=[0, 2, 1])


def layer_norm(b: Builder, x: ir.Value, name: str, eps: float) -> ir.Value:
    """Layer norm with the weight and bias called `name`."""
    return b.op.LayerNormalization(x, b.weight(f"{name}.weight"), b.weight(f"{name}.bias"), epsilon=eps)


def _block(b: Builder, x: ir.Value, config: VisionConfig, index: int) -> ir.Value:
    name = f"{config.name}.encoder.layers.{index}"
    with b.scope(f"layer.{index}"):
        y = layer_norm(b, x, f"{name}.layer_norm1", config.eps)
        query, key, value = (b.linear(y, f"{name}.self_attn.{part}_proj") for part in "qkv")
        heads = {"q_num_heads": config.heads, "kv_num_heads": config.heads}
        y = b.op.Attention(query, key, value, **heads)
        x = b.op.Add(x, b.linear(y, f"{name}.self_attn.out_proj"))
        y = layer_norm(b, x, f"{name}.layer_norm2", config.eps)
        y = activate(b, b.linear(y, f"{name}.mlp.fc1"), config.activation)
        return b.op.Add(x, b.linear(y, f"{name}.mlp.fc2"))
