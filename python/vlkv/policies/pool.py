"""Pools scores over neighbouring tokens before selection, so that clusters of tokens are kept.

Source: SnapKV (arXiv 2404.14469) with max pooling; kvpress pools by mean.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def pool(
    scores: NDArray[np.float32], kind: Literal["none", "max", "mean"], kernel: int, end: int
) -> NDArray[np.float32]:
    """Pools the first `end` scores of `[..., C]` along the last axis over `kernel` neighbours.

    `max` takes the largest existing neighbour; `mean` divides by `kernel` at the edges too, as if zeros followed.
    Scores from `end` on are 0 in the result.
    """
    if kind == "none":
        return scores
    inner = scores[..., :end]
    pooled = inner.copy() if kind == "max" else inner.astype(np.float64)
    combine = np.maximum if kind == "max" else np.add
    for shift in range(1, min(kernel // 2, end - 1) + 1):
        combine(pooled[..., shift:], inner[..., :-shift], out=pooled[..., shift:])
        combine(pooled[..., :-shift], inner[..., shift:], out=pooled[..., :-shift])
    result = np.zeros_like(scores)
    result[..., :end] = pooled if kind == "max" else pooled / kernel
    return result
