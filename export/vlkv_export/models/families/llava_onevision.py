"""LLaVA-OneVision: LLaVA-NeXT's grids with up to 36 tiles; large grids and video frames are scaled down."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import AnyRes, ImageFacts, VideoFacts
from vlkv_export.checkpoint.fields import Fields, show
from vlkv_export.checkpoint.processor import read_frame, read_grids, read_pinpoints, read_sampling
from vlkv_export.models.families import llava_next
from vlkv_export.models.spec import ImageSource, Selection

SIDES = range(384, 2305, 384)
PINPOINTS = tuple((height, width) for height in SIDES for width in SIDES)
"""The grids that `LlavaOnevisionConfig` and its image processor assume if the checkpoint names none."""
VISION_WHERE_ABSENT: dict[str, object] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def read_image(source: ImageSource) -> ImageFacts:
    """Read the image facts: a single picture becomes a grid of tiles; each of several pictures is one tile."""
    side = llava_next.grid_side(source.config, source.vision)
    pinpoints = read_pinpoints(source.config, source.processor, PINPOINTS, source.vision.image_size)
    tiles = read_most_tiles(source.config)
    rule = AnyRes(pinpoints=pinpoints, rows=side, columns=side, shrink_to=tiles, several="whole")
    known = ("LlavaOnevisionImageProcessor",)
    return read_grids(source.processor, source.vision, source.token, known, rule)


def read_most_tiles(config: Fields) -> int:
    """Return the number in `vision_aspect_ratio`, which is 9 in `anyres_max_9`. Raises `CheckpointError`."""
    value = config.string("vision_aspect_ratio", "anyres_max_9")
    match = re.fullmatch(r"anyres_max_(\d{1,4})", value)
    if match is None or int(match.group(1)) == 0:
        raise CheckpointError(
            f"{config.where}: vision_aspect_ratio {show(value)} is not supported; supported: anyres_max_N"
        )
    return int(match.group(1))


def read_video(source: ImageSource) -> VideoFacts:
    """Frames of one tile each, scaled to half its rows and columns after the projector; a newline ends the video."""
    side = llava_next.grid_side(source.config, source.vision)
    frame = read_frame(source.processor, source.vision, source.token, "LlavaOnevisionVideoProcessor")
    small = -(-side // 2)
    return VideoFacts(
        frame=msgspec.structs.replace(frame, tile_features=side * side + 1),
        grid=(side, side),
        scaled=(small, small),
        newline=side * side,
        **read_sampling(source.processor),
    )


FAMILY = replace(
    llava_next.FAMILY,
    model_type="llava_onevision",
    tower="siglip_vision_model",
    text="qwen2",
    vision_where_absent=VISION_WHERE_ABSENT,
    read_image=read_image,
    selection=Selection(-1, "full"),
    image_token_id=151646,
    read_video=read_video,
    video_token_id=151647,
)
