"""Pixtral's vision tower: pictures of any size, two-dimensional rotary positions, gated blocks without biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import ImageFacts, Rows
from vlkv.storage.manifest import MAX_LAYERS
from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields, show
from vlkv_export.checkpoint.layout import Shape
from vlkv_export.checkpoint.processor import defaults_of, read_levels, read_longest
from vlkv_export.checkpoint.settings import MAX_HEADS, read_activation, read_feature_layers
from vlkv_export.graph.activation import activate
from vlkv_export.graph.builder import Builder
from vlkv_export.models.spec import ImageSource, Selection, Tower
from vlkv_export.models.towers.encoder import read_select, select

EPS = 1e-5
"""The epsilon of all norms; no configuration changes it."""


def read(config: Fields, vision: Fields, selection: Selection) -> VisionConfig:
    """Read the tower with the defaults of `PixtralVisionConfig`."""
    layers = vision.integer("num_hidden_layers", 24, high=MAX_LAYERS)
    hidden = vision.integer("hidden_size", 1024)
    heads = vision.integer("num_attention_heads", 16, high=MAX_HEADS)
    if hidden % heads or hidden // heads % 4:
        raise CheckpointError(
            f"{vision.where}: hidden_size {hidden} is not a multiple of 4 times {heads} attention heads"
        )
    rope = vision.child("rope_parameters")
    strategy = read_select(config, selection)
    if strategy != "full":
        raise CheckpointError(
            f"{config.where}: vision_feature_select_strategy {strategy!r} would drop a patch of every picture, as a "
            "pixtral tower has no class token; use 'full'"
        )
    return VisionConfig(
        architecture="pixtral",
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=vision.integer("intermediate_size", 4096),
        image_size=0,
        patch_size=vision.integer("patch_size", 16),
        channels=vision.integer("num_channels", 3, low=3, high=3),
        activation=read_activation(vision, "hidden_act", "gelu"),
        eps=EPS,
        feature_layers=read_feature_layers(config, layers, selection.layer),
        select="full",
        prefix=0,
        rope_theta=rope.number("rope_theta", vision.number("rope_theta", 10_000.0, above=1.0), above=1.0),
    )


def read_image(source: ImageSource) -> ImageFacts:
    """Read the image facts: one token per patch, `image_break_token` after each row, `image_end_token` at the end."""
    processor, combined, patch = source.processor, source.combined, source.vision.patch_size
    defaults = defaults_of(processor, ("PixtralImageProcessor",))
    said = combined.integer("patch_size", patch) * combined.integer("spatial_merge_size", 1)
    if said != patch:
        raise CheckpointError(
            f"{combined.where}: patches have {said} pixels, but the tower's patch_size is {patch}"
        )
    for name, wanted in (("do_resize", True), ("do_center_crop", False)):
        if processor.boolean(name, wanted) != wanted:
            raise CheckpointError(
                f"{processor.where}: {name} {show(not wanted)} is not supported with a pixtral tower"
            )
    longest = read_longest(processor)
    height, width = (-(-side // patch) * patch for side in longest)
    ends = {"break": "[IMG_BREAK]", "end": "[IMG_END]"}
    ids = {
        f"{key}_id": source.added.id_of(combined.string(f"image_{key}_token", text))
        for key, text in ends.items()
    }
    return ImageFacts(
        token_id=source.token.id,
        token=source.token.text,
        tile_features=(height // patch) * (width // patch),
        height=height,
        width=width,
        resize="none",
        resize_height=0,
        resize_width=0,
        crop=False,
        pad_to_square=False,
        rule=Rows(patch=patch, longest=longest, **ids),
        **read_levels(processor, defaults),
    )


def tensors(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the embedding and of the layers that the features need."""
    hidden, patch = vision.hidden, vision.patch_size
    yield "vision.patch_conv.weight", (hidden, vision.channels, patch, patch)
    yield "vision.ln_pre.weight", (hidden,)
    for layer in range(vision.used_layers):
        name = f"vision.transformer.layers.{layer}"
        yield f"{name}.attention_norm.weight", (hidden,)
        for part in "qkvo":
            yield f"{name}.attention.{part}_proj.weight", (hidden, hidden)
        yield f"{name}.ffn_norm.weight", (hidden,)
        for part in ("gate", "up"):
            yield f"{name}.feed_forward.{part}_proj.weight", (vision.intermediate, hidden)
        yield f"{name}.feed_forward.down_proj.weight", (hidden, vision.intermediate)


def build(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    """Map pictures `[N,3,H,W]` of one size to the features of the selected layers, `[N,P,hidden * layers]`."""
    with b.scope("embeddings"):
        patch = config.patch_size
        kernel = b.weight("vision.patch_conv.weight")
        grid = b.op.Conv(b.op.Cast(pixels, to=b.dtype), kernel, strides=[patch, patch])
        tables = _rotary_tables(b, pixels, config)
        x = b.op.Transpose(b.op.Reshape(grid, [0, config.hidden, -1]), perm=[0, 2, 1])
        x = _norm(b, x, "vision.ln_pre")
    states = {0: x}
    for index in range(config.used_layers):
        x = _block(b, x, tables, config, index)
        states[index + 1] = x
    return select(b, [states[index] for index in config.feature_layers], config)


def _rotary_tables(b: Builder, pixels: ir.Value, config: VisionConfig) -> tuple[ir.Value, ir.Value]:
    """Cos and sin `[N,P,D/2]`: even frequencies rotate by a patch's row, odd ones by its column.

    They depend on the pictures' shape alone, so a 16-bit graph can compute them in float32.
    """
    dim = config.hidden // config.heads
    exponent = np.arange(0, dim, 2).astype(np.float32) / np.float32(dim)
    frequency = np.float32(1) / np.power(np.float32(config.rope_theta), exponent)
    sides = (b.op.Squeeze(b.op.Shape(pixels, start=axis, end=axis + 1), [0]) for axis in (2, 3))
    size = [b.op.Div(side, config.patch_size) for side in sides]
    whole = b.op.Concat(*(b.op.Unsqueeze(side, [0]) for side in size), [dim // 4], axis=0)
    angles = []
    for axis, side in enumerate(size):
        place = b.op.Cast(b.op.Range(0, side, 1), to=ir.DataType.FLOAT)
        turns = b.op.Constant(value=ir.tensor(frequency[axis::2], name=f"inv_freq.{axis}"))
        angle = b.op.Mul(b.op.Unsqueeze(place, [-1]), turns)
        angles.append(b.op.Expand(b.op.Unsqueeze(angle, [1 - axis]), whole))
    angle = b.op.Reshape(b.op.Concat(*angles, axis=-1), [1, -1, dim // 2])
    pictures = b.op.Shape(pixels, start=0, end=1)
    cos, sin = (
        b.op.Expand(table, b.op.Concat(pictures, [1, 1], axis=0))
        for table in (b.op.Cos(angle), b.op.Sin(angle))
    )
    if b.dtype == ir.DataType.FLOAT:
        return cos, sin
    return b.op.Cast(cos, to=b.dtype), b.op.Cast(sin, to=b.dtype)


def _norm(b: Builder, x: ir.Value, name: str) -> ir.Value:
    return b.op.RMSNormalization(x, b.weight(f"{name}.weight"), epsilon=EPS)


def _block(
    b: Builder, x: ir.Value, tables: tuple[ir.Value, ir.Value], config: VisionConfig, index: int
) -> ir.Value:
    name = f"vision.transformer.layers.{index}"
    with b.scope(f"layer.{index}"):
        y = _norm(b, x, f"{name}.attention_norm")
        query, key, value = (b.linear(y, f"{name}.attention.{part}_proj") for part in "qkv")
        query, key = (b.op.RotaryEmbedding(part, *tables, num_heads=config.heads) for part in (query, key))
        y = b.op.Attention(query, key, value, q_num_heads=config.heads, kv_num_heads=config.heads)
        x = b.op.Add(x, b.linear(y, f"{name}.attention.o_proj"))
        y = _norm(b, x, f"{name}.ffn_norm")
        gate = activate(b, b.linear(y, f"{name}.feed_forward.gate_proj"), config.activation)
        y = b.op.Mul(gate, b.linear(y, f"{name}.feed_forward.up_proj"))
        return b.op.Add(x, b.linear(y, f"{name}.feed_forward.down_proj"))


TOWER = Tower(read, tensors, build, read_image)
