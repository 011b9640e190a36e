"""LLaVA-NeXT (1.6): a picture is one overview tile and a grid of tiles with a newline token after each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import AnyRes, ImageFacts
from vlkv_export.checkpoint.facts import Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape
from vlkv_export.checkpoint.processor import read_grids, read_pinpoints
from vlkv_export.models.families import llava
from vlkv_export.models.spec import ImageSource

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""The grids that `LlavaNextConfig` and its image processor assume if the checkpoint names none."""


def read_image(source: ImageSource, known: tuple[str, ...] = ("LlavaNextImageProcessor",)) -> ImageFacts:
    """Grids of tiles; all pictures of a prompt have them. `known` are classes of processors that may be named."""
    side = grid_side(source.config, source.vision)
    pinpoints = read_pinpoints(source.config, source.processor, PINPOINTS, source.vision.image_size)
    rule = AnyRes(pinpoints=pinpoints, rows=side, columns=side)
    return read_grids(source.processor, source.vision, source.token, known, rule)


def grid_side(config: Fields, vision: VisionConfig) -> int:
    """Rows (and columns) of a tile's tokens. Raises `CheckpointError` if a tile does not have one token per patch."""
    if vision.tokens != vision.patches:
        raise CheckpointError(
            f"{config.where}: vision_feature_select_strategy {vision.select!r} of a {vision.architecture} gives "
            f"{vision.tokens} features for {vision.patches} patches, which form no grid; use "
            f"{'default' if vision.select == 'full' else 'full'!r}"
        )
    return vision.image_size // vision.patch_size


def tensors(vision: VisionConfig, projector: Projector, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the projector and of the newline."""
    yield from llava.tensors(vision, projector, text)
    yield llava.NEWLINE, (text.hidden,)


FAMILY = replace(llava.FAMILY, model_type="llava_next", read_image=read_image, tensors=tensors)
