"""Products with stored weights by their definition, in float64, and the error bound of a float32 kernel."""

import numpy as np


def widen(weight, scales=None, zeros=None, bits=0, depth=None):
    """Returns the matrix [N, K] in float64 that the stored weights stand for.

    bits 0: weight is [N, K] floats; bfloat16 is given as uint16. bits 8: codes [N, G, block], where 128 is zero. bits
    4: two codes per byte [N, G, block / 2], the earlier in the low bits. zeros are [N, G], or None for 8; float16 zeros
    are minimums that are added to code * scale. scales [N, G].
    """
    if bits == 0:
        if weight.dtype == np.uint16:
            return (weight.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return weight.astype(np.float64)
    codes = weight.astype(np.int64)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*weight.shape[:2], 2 * weight.shape[2])
    if zeros is not None and zeros.dtype == np.float16:
        wide = codes * scales.astype(np.float64)[..., None] + zeros.astype(np.float64)[..., None]
        return wide.reshape(len(weight), wide.shape[1] * wide.shape[2])[:, :depth]
    zero = np.full(scales.shape, 128 if bits == 8 else 8) if zeros is None else zeros.astype(np.int64)
    wide = (codes - zero[..., None]) * scales.astype(np.float64)[..., None]
    return wide.reshape(len(weight), wide.shape[1] * wide.shape[2])[:, :depth]


def linear(x, matrix, bias=None, error=None, zero=0.0):
    """Multiplies inputs x [..., K] with the matrix [N, K]. Returns result and error bound, both [..., N].

    A weight is rounded once. Then K products and the bias are added up, each rounded by half a unit of float32.

    error: what the rows may be off by, [..., K]. zero: what stands for zero in codes times the largest scale, if codes
    are multiplied and it is subtracted afterwards.
    """
    x = x.astype(np.float64)
    result, magnitude = x @ matrix.T, np.abs(x) @ np.abs(matrix).T
    if bias is not None:
        result, magnitude = result + bias, magnitude + np.abs(bias)
    own = 0 if error is None else error @ np.abs(matrix).T
    magnitude = magnitude + 2 * zero * np.abs(x).sum(axis=-1, keepdims=True)
    return result, (x.shape[-1] + 4) * 2.0**-24 * magnitude + own + 2.0**-126


def fixed16(x):
    """Rows x [..., K] in fixed point of 16 bits, as `vlkv/linear.h` defines it: the rows and the error, both [..., K].

    Spans of 32 numbers have a step of 1/32512 of their largest magnitude. The error is half a step, and that of three
    roundings of float32 on the way.
    """
    x = x.astype(np.float64)
    depth = x.shape[-1]
    spans = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -depth % 32)]).reshape(
        *x.shape[:-1], -(-depth // 32), 32
    )
    step = np.broadcast_to(np.abs(spans).max(axis=-1, keepdims=True) / 32512, spans.shape)
    rounded = np.rint(np.divide(spans, step, out=np.zeros_like(spans), where=step > 0)) * step
    wide = [part.reshape(*x.shape[:-1], depth + -depth % 32)[..., :depth] for part in (rounded, step)]
    return wide[0], wide[1] * (0.5 + 3 * 32512 * 2.0**-24)


def normalized(x, norm, epsilon):
    """RMSNorm of rows x [..., K] (arXiv 1910.07467): result and error bound of a float32 kernel, both [..., K].

    The mean of squares has K roundings, of which the root halves the relative error; six more follow.
    """
    x = x.astype(np.float64)
    result = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * norm
    return result, (x.shape[-1] / 2 + 6) * 2.0**-24 * np.abs(result) + 2.0**-126


def gated(x, other):
    """SwiGLU, x / (1 + exp(-x)) * other (arXiv 2002.05202): result and error bound of a float32 kernel, both [..., K].

    An exponent's rounding is relative to its size; the exponential has two units, and six roundings follow.
    """
    x, other = x.astype(np.float64), other.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        result = x / (1 + np.exp(-x)) * other
    return result, (2 * np.abs(x) + 10) * 2.0**-24 * np.abs(result) + 2.0**-120 * np.abs(other)
