"""Scores shared with their neighbours before selection, so that what is kept comes in clusters.

Source: SnapKV (arXiv 2404.14469), max-pooling; kvpress pools by the mean.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def pool(
    scores: NDArray[np.float32], kind: Literal["none", "max", "mean"], kernel: int, end: int
) -> NDArray[np.float32]:
    """Pools scores `[..., C]` along their last axis over `kernel` neighbours, of the first `end` ones only.

    `max` takes the largest that is there; `mean` divides by `kernel` at the edges too, zeros counted as neighbours.
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
