"""Video-LLaVA: pictures and video frames have a tower each; all features of a frame are tokens."""

from __future__ import annotations

import re
from dataclasses import replace

import onnx_ir as ir

from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv_export.checkpoint.facts import Checkpoint, VisionConfig
from vlkv_export.checkpoint.processor import ONE_TILE, read_frame, read_sampling
from vlkv_export.checkpoint.processor import read_image as read_one_tile
from vlkv_export.models.families import llava
from vlkv_export.models.spec import ImageSource, Tower

PREFIXES = (
    *llava.PREFIXES,
    (re.compile(r"(?:model\.)?image_tower\.(?:vision_model\.)?"), "vision."),
    (re.compile(r"(?:model\.)?video_tower\.(?:vision_model\.)?"), "video."),
)


def read_image(source: ImageSource) -> ImageFacts:
    """Every picture is one tile."""
    known = ("VideoLlavaImageProcessor", *ONE_TILE)
    return read_one_tile(source.processor, source.vision, source.token, known)


def read_video(source: ImageSource) -> VideoFacts:
    """Every frame is one tile of the other tower, the class token kept whatever the strategy for pictures."""
    vision = video_tower(source.vision)
    side = vision.image_size // vision.patch_size
    return VideoFacts(
        frame=read_frame(source.processor, vision, source.token, "VideoLlavaVideoProcessor"),
        graph="video",
        prefix=vision.prefix,
        grid=(side, side),
        **read_sampling(source.processor),
    )


def video_tower(vision: VisionConfig) -> VisionConfig:
    """The tower of frames: like that of pictures, with weights of its own."""
    return replace(vision, name="video", select="full")


def build_video(checkpoint: Checkpoint, dtype: str, tower: Tower) -> ir.Model:
    """The `video` graph: frames `[N,3,H,W]` to features `[N,P,hidden]`."""
    config = video_tower(checkpoint.vision)
    return llava.graph_of(checkpoint, dtype, tower, config, config.tokens)


FAMILY = replace(
    llava.FAMILY,
    model_type="video_llava",
    vision_where_absent=llava.VISION_WHERE_ABSENT | {"image_size": 224},
    prefixes=PREFIXES,
    read_image=read_image,
    read_video=read_video,
    video_tower=video_tower,
    build_video=build_video,
)
