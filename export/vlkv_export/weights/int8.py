"""Weights in 8 bits: rows in blocks; a block has a scale and codes that are symmetric about zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlkv_export.weights.spec import Format, Part

LARGEST = 127
ZERO = 128
"""The code of 0."""

BLOCK = 32

LEAST_SCALE = np.float16(2.0**-24)
Codes = NDArray[np.uint8]
Scales = NDArray[np.float16]


def in_blocks(rows: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Reshapes rows `[N, K]` to `[N, ceil(K / block), block]`, with zeros past K."""
    count, columns = rows.shape
    blocks = -(-columns // block)
    padded = np.zeros((count, blocks * block), np.float32)
    padded[:, :columns] = rows
    return padded.reshape(count, blocks, block)


def quantize(rows: NDArray[np.float32], block: int = BLOCK) -> tuple[Codes, Scales]:
    """Rounds rows `[N, K]` to 8 bits.

    Returns:
        Codes `[N, ceil(K / block), block]`; a number is (code - 128) * scale, and changes by at most half a scale, the
        largest by a sixteenth of a scale more; codes past K are 128. Scales `[N, ceil(K / block)]` float16: the
        block's largest magnitude / 127.
    """
    numbers = in_blocks(rows, block)
    largest = np.abs(numbers).max(axis=2) / np.float32(LARGEST)
    scales = np.maximum(largest.astype(np.float16), LEAST_SCALE)
    codes = np.rint(numbers / scales.astype(np.float32)[..., np.newaxis]).clip(-LARGEST, LARGEST)
    return (codes.astype(np.int16) + ZERO).astype(np.uint8), scales


def _layout(rows: int, columns: int) -> dict[str, Part]:
    blocks = -(-columns // BLOCK)
    return {"codes": ("U8", (rows, blocks, BLOCK)), "scales": ("F16", (rows, blocks))}


INT8 = Format("int8", bits=8, layout=_layout, encode=quantize)
