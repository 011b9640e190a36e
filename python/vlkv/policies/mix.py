"""Scores that mix a token's importance with how much it differs from others, by head.

Source: MixKV (arXiv 2510.20707) and its published code, method `headwisemixkv`. The code reads each head's redundancy
from a file that was measured beforehand; here it is that of the prompt at hand, as the paper defines it. Hkv key/value
heads, C slots, D head dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlkv.dtypes import Float64

LEAST = 1e-8
"""Added to denominators, as in the published code."""


def mixed(
    scores: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32], end: int
) -> NDArray[np.float32]:
    """Scores `[1, Hkv, C]` of the first `end` tokens, 0 for others: (1 - r) * importance + r * diversity.

    Importance is the score plus the norm of the token's value. Diversity is how far its key points away from the mean
    direction of the head's keys. Norms and diversity are scaled to 0..1 over the tokens, and then to the scores' mean.
    r is the mean cosine of two different keys of the head.

    Args:
        scores: the attention that each token received, pooled.
        keys: the tokens' keys `[Hkv, C, D]`, or the same rotated: only norms and cosines count.
        values: their values, the same shape.
        end: the first token that always stays.
    """
    result = np.zeros_like(scores)
    if end < 1:
        return result
    count = keys.shape[1]
    for head in range(len(keys)):
        length = np.sqrt(np.einsum("cd,cd->c", keys[head], keys[head], dtype=np.float64))
        directions = keys[head] / np.maximum(length, 1e-12)[:, np.newaxis].astype(np.float32)
        mean = directions.mean(axis=0, dtype=np.float64)
        redundancy = (count * float(mean @ mean) - 1.0) / max(1, count - 1)
        attention = scores[0, head, :end].astype(np.float64)
        level = float(attention.mean())
        norms = np.sqrt(np.einsum("cd,cd->c", values[head][:end], values[head][:end], dtype=np.float64))
        importance = attention + _scaled(norms, level)
        diversity = _scaled(-(directions[:end] @ mean.astype(np.float32)).astype(np.float64), level)
        result[0, head, :end] = (1.0 - redundancy) * importance + redundancy * diversity
    return result


def _scaled(numbers: Float64, level: float) -> Float64:
    """Numbers moved to 0..1 and scaled so that their mean is `level`."""
    spread: Float64 = (numbers - numbers.min()) / (numbers.max() - numbers.min() + LEAST)
    scaled: Float64 = spread * (level / (float(spread.mean()) + LEAST))
    return scaled
