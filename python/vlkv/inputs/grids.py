"""The choice of a picture's grid of tiles, and the tokens that remain without the grid's padding.

Equal to transformers' `select_best_resolution`, `get_patch_output_size` and `unpad_image`, including rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def best_pinpoint(size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the grid that shows most of a picture's pixels; of several, the one with least padding."""
    width, height = size
    best, most, least = pinpoints[0], 0, math.inf
    for high, wide in pinpoints:
        scale = min(wide / width, high / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        left_over = wide * high - shown
        if shown > most or (shown == most and left_over < least):
            best, most, least = (high, wide), shown, left_over
    return best


def scaled_into(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture scaled to fit `room`; the side that does not fill it is rounded up."""
    across, down = room[0] / size[0], room[1] / size[1]
    if across < down:
        return room[0], min(math.ceil(size[1] * across), room[1])
    return min(math.ceil(size[0] * down), room[0]), room[1]


def padding(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """The rows of padding tokens above (and below) a picture in its grid, and the columns left (and right) of it."""
    if size[0] / size[1] > columns / rows:
        return (rows - int(round(size[1] * (columns / size[0]), 7))) // 2, 0
    return 0, (columns - int(round(size[0] * (rows / size[1]), 7))) // 2


class Axis:
    """One axis of a grid: `count` tokens from index `begin` on, scaled to `target` tokens.

    Scaling equals PyTorch's bilinear `interpolate` without aligned corners, in float32.

    Attributes:
        places: the grid's indices `[target, n]` that each token is interpolated from, n = 1 or 2.
        shares: their weights `[target, n]` float32.
        begin, end: the range of all of them, in indices.
    """

    def __init__(self, begin: int, count: int, target: int) -> None:
        self.begin, self.end = begin, begin + count
        if target == count:
            self.places = begin + np.arange(count)[:, np.newaxis]
            self.shares = np.ones((count, 1), np.float32)
            return
        scale = np.float32(count) / np.float32(target)
        middle = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
        middle = np.maximum(middle, np.float32(0))
        low = middle.astype(np.int64)
        high = np.minimum(low + 1, count - 1)
        share = middle - low.astype(np.float32)
        self.places = begin + np.stack([low, high], axis=1)
        self.shares = np.stack([1 - share, share], axis=1).astype(np.float32)
