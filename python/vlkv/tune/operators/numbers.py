"""Number formats of caches and weights, for the oracles: bfloat16 as uint16, and stored weights as float64."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
EPSILON = 2.0**-24
"""Half a unit in the last place of float32, as a share."""


def to_bfloat16(values: Array) -> Array:
    """Rounds float32 to bfloat16, to nearest even, as uint16; a NaN stays a NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def wide(values: Array) -> Array:
    """Returns float32 values, or bfloat16 values given as uint16, in float64."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def stored(values: Array, dtype: str) -> Array:
    """Returns float32 values as a cache of that dtype stores them."""
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(np.float32)


def codes_to_float(codes: Array, scales: Array, zeros: Array | None, bits: int, depth: int) -> Array:
    """Returns the matrix `[N, depth]` in float64 of codes `[N, G, bytes]`, scales and zeros `[N, G]`.

    Zeros of float16 are minimums.
    """
    numbers = codes.astype(np.int64)
    if bits == 4:
        pairs = np.stack([numbers & 15, numbers >> 4], axis=-1)
        numbers = pairs.reshape(*codes.shape[:2], 2 * codes.shape[2])
    if zeros is not None and zeros.dtype == np.float16:
        least = numbers * scales.astype(np.float64)[..., None] + zeros.astype(np.float64)[..., None]
        return least.reshape(len(codes), -1)[:, :depth]
    zero = np.full(scales.shape, 128 if bits == 8 else 8) if zeros is None else zeros.astype(np.int64)
    matrix = (numbers - zero[..., None]) * scales.astype(np.float64)[..., None]
    made: Array = matrix.reshape(len(codes), -1)[:, :depth]
    return made
