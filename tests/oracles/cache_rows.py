"""What a KV cache of fewer bits stores of float32 rows, by its definition, in float64."""

import numpy as np


def bfloat16(rows):
    """Rounds to nearest even. Returns the bits, uint16; any NaN becomes the bits 0x7fc0."""
    exact = rows.astype(np.float64)
    finite = np.isfinite(exact)
    _, exponent = np.frexp(np.where(finite, exact, 0))
    step = np.ldexp(1.0, np.maximum(exponent - 1, -126) - 7)  # 8 significant bits, denormals under 2^-126
    rounded = np.where(finite, np.rint(np.where(finite, exact, 0) / step) * step, exact)
    rounded = np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, rounded), rounded)
    rounded = np.where(np.isnan(exact), 0, rounded).astype(np.float32)
    bits = (rounded.view(np.uint32) >> 16).astype(np.uint16)
    return np.where(np.isnan(exact), np.uint16(0x7FC0), bits)


def block_of(dim):
    """Returns the largest power of two that divides dim."""
    return dim & -dim


def hadamard(dim):
    """Returns the rotation [D, D] of the rows of int8 caches, in float64: it is orthonormal and its own inverse."""
    block = np.ones((1, 1))
    while len(block) < block_of(dim):
        block = np.block([[block, block], [block, -block]])
    return np.kron(np.eye(dim // len(block)), block / np.sqrt(len(block)))


def rotated(rows):
    """Rotates float32 rows in float32, in the order of operations that the format fixes."""
    block = block_of(rows.shape[-1])
    found, width = rows.astype(np.float32).reshape(-1, block), 1
    with np.errstate(over="ignore", invalid="ignore"):
        while width < block:
            low, high = np.moveaxis(found.reshape(-1, block // (2 * width), 2, width), 2, 0)
            found = np.stack([low + high, low - high], axis=2).reshape(-1, block)
            width *= 2
        return (found * np.float32(1 / np.sqrt(np.float32(block)))).reshape(rows.shape)


def int8(rows):
    """Returns codes [..., D] int8 and scales [...] float32: the row's largest magnitude over 127, NaN if not finite."""
    exact = rows.astype(np.float64)
    finite = np.isfinite(exact).all(-1)
    safe = np.where(finite[..., None], exact, 0)
    scale = np.where(finite, (np.abs(safe).max(-1, initial=0) / 127).astype(np.float32), np.float32(np.nan))
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[..., None]
    ratio = (np.where((scale > 0)[..., None], safe, 0) / divisor).astype(np.float32)
    return np.clip(np.rint(ratio), -127, 127).astype(np.int8), scale.astype(np.float32)


def narrow(rows, dtype):
    """Returns the rows as Attend stores them: floats or uint16 of the same shape, or rotated codes and their scale."""
    if dtype == "float32":
        return rows.astype(np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return rows.astype(np.float64).astype(np.float16)
    if dtype == "bfloat16":
        return bfloat16(rows)
    codes, scale = int8(rotated(rows))
    return np.concatenate([codes, scale[..., None].view(np.int8)], axis=-1)


def widen(stored, dtype):
    """Returns the numbers that stored rows hold, [..., D] float64; of int8 they are rotated."""
    if dtype in ("float16", "float32"):
        return stored.astype(np.float64)
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    codes, scale = stored[..., :-4], np.ascontiguousarray(stored[..., -4:]).view(np.float32)
    return codes.astype(np.float64) * scale.astype(np.float64)
