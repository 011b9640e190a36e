"""What a pruning method sees of one picture: its pixels, its tokens' features, and which pixels a token shows.

T tokens of a picture that get features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.dtypes import Float32, Int64
from vlkv.inputs.layouts import Layout, patches
from vlkv.storage.image_facts import AnyRes, ImageFacts, Rows, features_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a prompt.

    Fields:
        pixels: the pixel values `[tiles,3,height,width]`, as the tower receives them.
        features: the features `[T, hidden]` of its tokens.
        layout: the layout of its tiles and tokens.
        facts: the model's rules for pictures.
        question: the embeddings `[Q, hidden]` of the text behind the last picture, or of all text if none follows.
    """

    pixels: Float32
    features: Float32
    layout: Layout
    facts: ImageFacts
    question: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @cached_property
    def shown(self) -> Int64:
        """The tokens, ascending, that show a part of the picture. Class tokens and newlines show none."""
        number = np.cumsum(self.layout.has_features) - 1
        every = [view.tokens.reshape(-1) for view in self.layout.views]
        found: Int64 = np.unique(number[np.concatenate(every)])
        return found

    def patch(self, row: int) -> Float32 | None:
        """The pixels `[3, h, w]` that a row of the tower's features shows; None if it is not a patch.

        `row` counts over all tiles. If the patches do not divide the tile evenly, the result includes the pixels of
        both readings: patches of a whole number of pixels, and patches stretched to the tile.
        """
        rows, columns, skipped = self._grid
        height, width = self.pixels.shape[2:]
        tile, place = divmod(row, features_of(self.facts, height, width))
        line, column = divmod(place - skipped, columns)
        if place < skipped or line >= rows or height < rows or width < columns:
            return None
        down, across = _span(line, rows, height), _span(column, columns, width)
        return self.pixels[tile, :, down, across]

    @cached_property
    def _grid(self) -> tuple[int, int, int]:
        """Rows and columns of a tile's patches, and the rows of features before them; 0 rows if there is no grid."""
        rule = self.facts.rule
        if isinstance(rule, AnyRes):
            return rule.rows, rule.columns, 0
        if isinstance(rule, Rows):
            return self.pixels.shape[2] // rule.patch, self.pixels.shape[3] // rule.patch, 0
        rows, columns, skipped = patches(self.facts)
        square = abs(self.facts.height / rows - self.facts.width / columns) < 1
        return (rows if square else 0), columns, skipped


def unit_rows(features: Float32) -> Float32:
    """Rows of length 1; rows of zeros, and those with NaN or infinity, become zeros."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Float32 = np.divide(
        features, length, out=np.zeros_like(features), where=np.isfinite(length) & (length > 0)
    )
    return unit


class Pruner(Protocol):
    """A pruning method with its settings."""

    def keep(self, picture: Picture) -> Mask:
        """Which of the picture's tokens `[T]` stay; at least one."""
        ...


def _span(number: int, count: int, pixels: int) -> slice:
    return slice(number * (pixels // count), -(-(number + 1) * pixels // count))
