"""Weights in 4 bits: rows in blocks of 32; a block has a scale, a minimum, and codes from 0 to 15."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vlkv_export.weights.blocks import Codes, Floats, Halves, in_blocks, round_blocks
from vlkv_export.weights.spec import Format, Part

LARGEST = 15
BLOCK = 32
SHRUNK = (0.0, 0.025, 0.05, 0.075, 0.1)
"""Shares of a block's range to try cutting off at each end: a narrower range has smaller steps."""


def quantize(rows: NDArray[np.float32], block: int = BLOCK) -> tuple[Codes, Halves, Halves]:
    """Rounds rows `[N, K]` to 4 bits; each block uses the range of `SHRUNK` with the smallest squared error.

    Returns:
        Codes `[N, ceil(K / block), block / 2]`, two per byte, the earlier in the low bits; a number is code * scale +
        minimum. Scales and minimums `[N, ceil(K / block)]` float16. With the whole range a number changes by at most
        half a scale, plus the rounding of scale and minimum; a block that came from GGUF's Q4_1 does not change.
    """
    codes, scales, minimums = round_blocks(in_blocks(rows, block), LARGEST, _tries)
    pairs: Codes = codes[..., 0::2] | np.left_shift(codes[..., 1::2], 4, dtype=np.uint8)
    return pairs, scales, minimums


def _tries(low: Floats, high: Floats) -> Iterator[tuple[Floats, Floats]]:
    span = high - low
    for share in SHRUNK:
        yield np.float32((1 - 2 * share) / LARGEST) * span, low + np.float32(share) * span


def _layout(rows: int, columns: int) -> dict[str, Part]:
    blocks = -(-columns // BLOCK)
    return {
        "codes": ("U8", (rows, blocks, BLOCK // 2)),
        "scales": ("F16", (rows, blocks)),
        "minimums": ("F16", (rows, blocks)),
    }


INT4 = Format("int4", bits=4, layout=_layout, encode=quantize, head="int8")
