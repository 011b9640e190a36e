"""Weights in 8 bits: rows in blocks of 32; a block has a scale, a minimum, and codes from 0 to 255."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vlkv_export.weights.blocks import LEAST_SCALE, Codes, Floats, Halves, in_blocks, round_blocks
from vlkv_export.weights.spec import Format, Part

LARGEST = 255
MIDDLE = 128
"""The code of 0 in a block that is symmetric about it."""

BLOCK = 32


def quantize(rows: NDArray[np.float32], block: int = BLOCK) -> tuple[Codes, Halves, Halves]:
    """Rounds rows `[N, K]` to 8 bits.

    A block's codes span its smallest to its largest number, or are symmetric about 0, whichever has the smaller squared
    error. Blocks that came from GGUF's Q8_0 do not change, those from its Q4_1 only by the rounding of their scale.

    Returns:
        Codes `[N, ceil(K / block), block]`; a number is code * scale + minimum. Scales and minimums
        `[N, ceil(K / block)]` float16. With the whole range a number changes by at most half a scale, plus the rounding
        of scale and minimum.
    """
    return round_blocks(in_blocks(rows, block), LARGEST, _tries)


def _tries(low: Floats, high: Floats) -> Iterator[tuple[Floats, Floats]]:
    yield (high - low) / np.float32(LARGEST), low
    scale = np.maximum((np.maximum(high, -low) / (MIDDLE - 1)).astype(np.float16), LEAST_SCALE)
    wide = scale.astype(np.float32)
    yield wide, wide * -MIDDLE


def _layout(rows: int, columns: int) -> dict[str, Part]:
    blocks = -(-columns // BLOCK)
    return {
        "codes": ("U8", (rows, blocks, BLOCK)),
        "scales": ("F16", (rows, blocks)),
        "minimums": ("F16", (rows, blocks)),
    }


INT8 = Format("int8", bits=8, layout=_layout, encode=quantize)
