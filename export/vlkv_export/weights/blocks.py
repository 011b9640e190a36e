"""Rounding of blocks of numbers to codes that have a scale and a minimum: a number is code * scale + minimum."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

LEAST_SCALE = np.float16(2.0**-24)

TILE = 2048
"""Blocks that are rounded at a time: their arrays stay in a core's cache."""

Codes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Floats = NDArray[np.float32]

Tries = Callable[[Floats, Floats], Iterable[tuple[Floats, Floats]]]
"""The scales and minimums to try, each `[n]`, for the smallest and the largest number of n blocks."""


def in_blocks(rows: Floats, block: int) -> Floats:
    """Reshapes rows `[N, K]` to `[N, ceil(K / block), block]`, with zeros past K."""
    count, columns = rows.shape
    blocks = -(-columns // block)
    padded = np.zeros((count, blocks * block), np.float32)
    padded[:, :columns] = rows
    return padded.reshape(count, blocks, block)


def round_blocks(numbers: Floats, largest: int, tries: Tries) -> tuple[Codes, Halves, Halves]:
    """Rounds blocks, each by the scale and minimum with the smallest squared error among those to try.

    Args:
        numbers: `[N, G, block]`.
        largest: the largest code; the smallest is 0.
        tries: gives the scales and minimums.

    Returns:
        Codes `[N, G, block]`; scales, at least 2^-24, and minimums `[N, G]`.
    """
    blocks = numbers.reshape(-1, numbers.shape[2])
    codes = np.empty(blocks.shape, np.uint8)
    scales, minimums = (np.empty(len(blocks), np.float16) for _ in range(2))
    for begin in range(0, len(blocks), TILE):
        tile = slice(begin, begin + TILE)
        codes[tile], scales[tile], minimums[tile] = _tile(blocks[tile], largest, tries)
    shape = numbers.shape[:2]
    return codes.reshape(numbers.shape), scales.reshape(shape), minimums.reshape(shape)


def _tile(blocks: Floats, largest: int, tries: Tries) -> tuple[Codes, Halves, Halves]:
    """Rounds a few blocks `[n, block]`; they are transposed, so that NumPy's loops run over `n`."""
    numbers = np.ascontiguousarray(blocks.T)
    least = np.full(len(blocks), np.inf, np.float32)
    scales, minimums = np.full(len(blocks), LEAST_SCALE, np.float16), np.zeros(len(blocks), np.float16)
    code, error = np.empty_like(numbers), np.empty_like(numbers)
    for wide_scale, wide_minimum in tries(numbers.min(axis=0), numbers.max(axis=0)):
        scale, minimum = (
            np.maximum(wide_scale.astype(np.float16), LEAST_SCALE),
            wide_minimum.astype(np.float16),
        )
        wide, lowest = scale.astype(np.float32), minimum.astype(np.float32)
        _round(numbers, wide, lowest, largest, code)
        np.multiply(code, wide, out=error)
        error += lowest
        error -= numbers
        total = np.square(error, out=error).sum(axis=0)
        better = total < least
        for kept, tried in ((least, total), (scales, scale), (minimums, minimum)):
            np.copyto(kept, tried, where=better)
    _round(numbers, scales.astype(np.float32), minimums.astype(np.float32), largest, code)
    return code.astype(np.uint8).T, scales, minimums


def _round(numbers: Floats, scale: Floats, minimum: Floats, largest: int, code: Floats) -> None:
    """Writes the codes of numbers `[block, n]` into `code`, as floats."""
    np.subtract(numbers, minimum, out=code)
    code /= scale
    np.rint(code, out=code)
    np.maximum(code, 0, out=code)
    np.minimum(code, largest, out=code)
