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
    low, high = (end(numbers, axis=2)[..., np.newaxis] for end in (np.min, np.max))
    least = np.full(low.shape, np.inf, np.float32)
    codes = np.zeros(numbers.shape, np.uint8)
    scales, minimums = (np.zeros(low.shape, np.float16) for _ in range(2))
    for share in SHRUNK:
        scale = np.maximum(((1 - 2 * share) * (high - low) / LARGEST).astype(np.float16), LEAST_SCALE)
        minimum = (low + share * (high - low)).astype(np.float16)
        wide, lowest = scale.astype(np.float32), minimum.astype(np.float32)
        code = np.rint((numbers - lowest) / wide).clip(0, LARGEST)
        error = np.square(code * wide + lowest - numbers).sum(axis=2, keepdims=True)
        better = error < least
        least = np.where(better, error, least)
        codes = np.where(better, code.astype(np.uint8), codes)
        scales = np.where(better, scale, scales)
        minimums = np.where(better, minimum, minimums)
    pairs: NDArray[np.uint8] = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return pairs, scales[..., 0], minimums[..., 0]


def _layout(rows: int, columns: int) -> dict[str, Part]:
    blocks = -(-columns // BLOCK)
    return {
        "codes": ("U8", (rows, blocks, BLOCK // 2)),
        "scales": ("F16", (rows, blocks)),
        "minimums": ("F16", (rows, blocks)),
    }


INT4 = Format("int4", bits=4, layout=_layout, encode=quantize, head="int8")
