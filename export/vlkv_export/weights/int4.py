"""Weights in 4 bits: rows in blocks of 32; a block has a scale, a minimum, and codes from 0 to 15."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlkv_export.weights.int8 import LEAST_SCALE, in_blocks
from vlkv_export.weights.spec import Format, Part

LARGEST = 15
BLOCK = 32
SHRUNK = (0.0, 0.025, 0.05, 0.075, 0.1)
"""Shares of a block's range to try cutting off at each end: a narrower range has smaller steps."""

TILE = 2048
"""Blocks that are rounded at a time: their arrays stay in a core's cache."""

Bytes = NDArray[np.uint8]
Scales = NDArray[np.float16]


def quantize(rows: NDArray[np.float32], block: int = BLOCK) -> tuple[Bytes, Scales, Scales]:
    """Rounds rows `[N, K]` to 4 bits; each block uses the range of `SHRUNK` with the smallest squared error.

    Returns:
        Codes `[N, ceil(K / block), block / 2]`, two per byte, the earlier in the low bits; a number is code * scale +
        minimum. Scales and minimums `[N, ceil(K / block)]` float16. With the whole range a number changes by at most
        half a scale, plus the rounding of scale and minimum; a block that came from GGUF's Q4_1 does not change.
    """
    numbers = in_blocks(rows, block)
    blocks = numbers.reshape(-1, block)
    pairs = np.empty((len(blocks), block // 2), np.uint8)
    scales, minimums = (np.empty(len(blocks), np.float16) for _ in range(2))
    for begin in range(0, len(blocks), TILE):
        tile = slice(begin, begin + TILE)
        pairs[tile], scales[tile], minimums[tile] = _tile(blocks[tile])
    shape = numbers.shape[:2]
    return pairs.reshape(*shape, block // 2), scales.reshape(shape), minimums.reshape(shape)


def _tile(blocks: NDArray[np.float32]) -> tuple[Bytes, Scales, Scales]:
    """Rounds a few blocks `[n, block]`; they are transposed, so that NumPy's loops run over `n`."""
    numbers = np.ascontiguousarray(blocks.T)
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    least = np.full(len(blocks), np.inf, np.float32)
    scales, minimums = np.full(len(blocks), LEAST_SCALE, np.float16), np.zeros(len(blocks), np.float16)
    code, error = np.empty_like(numbers), np.empty_like(numbers)
    for share in SHRUNK:
        scale = np.maximum(((1 - 2 * share) * (high - low) / LARGEST).astype(np.float16), LEAST_SCALE)
        minimum = (low + share * (high - low)).astype(np.float16)
        wide, lowest = scale.astype(np.float32), minimum.astype(np.float32)
        _round(numbers, wide, lowest, code)
        np.multiply(code, wide, out=error)
        error += lowest
        error -= numbers
        total = np.square(error, out=error).sum(axis=0)
        better = total < least
        for kept, tried in ((least, total), (scales, scale), (minimums, minimum)):
            np.copyto(kept, tried, where=better)
    _round(numbers, scales.astype(np.float32), minimums.astype(np.float32), code)
    codes = code.astype(np.uint8)
    pairs: Bytes = (codes[0::2] | codes[1::2] << 4).astype(np.uint8)
    return pairs.T, scales, minimums


def _round(
    numbers: NDArray[np.float32],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32],
    code: NDArray[np.float32],
) -> None:
    """Writes the codes of numbers `[block, n]` into `code`, as floats."""
    np.subtract(numbers, minimum, out=code)
    code /= scale
    np.rint(code, out=code)
    np.maximum(code, 0, out=code)
    np.minimum(code, LARGEST, out=code)


def _layout(rows: int, columns: int) -> dict[str, Part]:
    blocks = -(-columns // BLOCK)
    return {
        "codes": ("U8", (rows, blocks, BLOCK // 2)),
        "scales": ("F16", (rows, blocks)),
        "minimums": ("F16", (rows, blocks)),
    }


INT4 = Format("int4", bits=4, layout=_layout, encode=quantize, head="int8")
