"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT; a video frame is one tile, pooled before the projector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv_export.checkpoint.facts import Checkpoint, Pool, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape
from vlkv_export.checkpoint.processor import read_frame, read_sampling
from vlkv_export.graph.builder import Builder
from vlkv_export.models.families import llava, llava_next
from vlkv_export.models.spec import ImageSource, Tower

POOL = "resampler.pool"
PREFIXES = (*llava.PREFIXES, (re.compile(r"(?:model\.)?vision_resampler\."), "resampler."))


def read(config: Fields) -> Projector:
    """Read the projector, and how frames are pooled: `spatial_pool_mode`, `spatial_pool_stride`."""
    mode, stride = config.string("spatial_pool_mode", "average"), config.integer("spatial_pool_stride", 2)
    for known in ("average", "max", "conv"):
        if mode == known:
            return replace(llava.read(config), pool=Pool(known, stride))
    raise config.fail("spatial_pool_mode", "one of average, max and conv")


def read_image(source: ImageSource) -> ImageFacts:
    """Grids of tiles, by a processor that may be saved under the name that the one for videos had in 2024."""
    return llava_next.read_image(source, ("LlavaNextImageProcessor", "LlavaNextVideoImageProcessor"))


def tensors(vision: VisionConfig, projector: Projector, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the projector, of the newline, and of a convolution that pools."""
    yield from llava_next.tensors(vision, projector, text)
    if projector.pool is not None and projector.pool.mode == "conv":
        if len(vision.feature_layers) > 1:
            raise CheckpointError(
                "spatial_pool_mode conv takes the features of one layer; vision_feature_layer names several"
            )
        yield f"{POOL}.weight", (vision.hidden, vision.hidden, projector.pool.stride, projector.pool.stride)
        yield f"{POOL}.bias", (vision.hidden,)


def read_video(source: ImageSource) -> VideoFacts:
    """Frames of one tile each; their pooled features lie between a tile's and the newline."""
    pool = read(source.config).pool
    side = llava_next.grid_side(source.config, source.vision)
    small = side // pool.stride if pool is not None else side
    if small == 0:
        raise source.config.fail("spatial_pool_stride", f"at most the tower's {side} patches a side")
    frame = read_frame(source.processor, source.vision, source.token, "LlavaNextVideoVideoProcessor")
    return VideoFacts(
        frame=msgspec.structs.replace(frame, tile_features=side * side + small * small + 1),
        begin=side * side,
        grid=(small, small),
        **read_sampling(source.processor),
    )


def build(checkpoint: Checkpoint, dtype: str, tower: Tower) -> ir.Model:
    """The `vision` graph: a tile's features, the same pooled, and the newline.

    The pooled ones of a picture's tile, and the others of a frame, are made for nothing, so that one graph does. The
    projector is a small part of the work.
    """
    config, rows = checkpoint.vision, checkpoint.image.tile_features
    widen = None if checkpoint.video is None else _with_pooled
    return llava.graph_of(checkpoint, dtype, tower, config, rows, widen)


def _with_pooled(b: Builder, features: ir.Value, checkpoint: Checkpoint) -> ir.Value:
    """The tower's features `[N,P,C]`, and behind them the pooled ones."""
    pool = checkpoint.projector.pool
    assert pool is not None
    config, square = checkpoint.vision, [pool.stride, pool.stride]
    channels, side = config.hidden * len(config.feature_layers), config.image_size // config.patch_size
    grid = b.op.Reshape(b.op.Transpose(features, perm=[0, 2, 1]), [0, channels, side, side])
    if pool.mode == "conv":
        weights = [b.weight(f"{POOL}.{part}") for part in ("weight", "bias")]
        small = b.op.Conv(grid, *weights, strides=square)
    elif pool.mode == "max":
        small = b.op.MaxPool(grid, kernel_shape=square, strides=square)
    else:
        small = b.op.AveragePool(grid, kernel_shape=square, strides=square)
    small = b.op.Transpose(b.op.Reshape(small, [0, channels, -1]), perm=[0, 2, 1])
    return b.op.Concat(features, small, axis=1)


FAMILY = replace(
    llava_next.FAMILY,
    model_type="llava_next_video",
    prefixes=PREFIXES,
    image_token_id=32001,
    read=read,
    read_image=read_image,
    tensors=tensors,
    build=build,
    read_video=read_video,
    video_token_id=32000,
)
