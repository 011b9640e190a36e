"""The cache hit rate: the share of the most attended tokens that was kept.

VL-Cache's measure without labels (arXiv 2410.23317, section 3.3). L layers, Hkv key/value heads, S prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Attention = NDArray[np.float32]


def hit_rate(
    steps: Sequence[Sequence[Attention]], kept: Sequence[NDArray[np.int32]], tokens: int, budget: float
) -> tuple[float, float]:
    """Averages over decoded tokens, layers and KV heads.

    Args:
        steps: for each decoded token, its attention with the full cache per layer, `[Hkv, C]`; C >= S.
        kept: the kept prompt positions per layer, `[Hkv, count]`.
        tokens: the prompt's tokens, S.
        budget: the k most attended tokens count, with k this share of S, rounded, at least 1; ties go to the first.

    Returns:
        The share of the k tokens that was kept, and the share of the attention to the prompt that kept tokens receive.
    """
    count = max(1, round(budget * tokens))
    hits, mass = [], []
    for layer, positions in enumerate(kept):
        stays = np.zeros((len(positions), tokens), bool)
        np.put_along_axis(stays, positions.astype(np.int64), True, axis=1)
        for attention in steps:
            seen = attention[layer][:, :tokens].astype(np.float64)
            top = np.argsort(-seen, axis=1, kind="stable")[:, :count]
            hits.append(np.take_along_axis(stays, top, axis=1).mean(axis=1))
            total = seen.sum(axis=1)
            share = np.where(stays, seen, 0.0).sum(axis=1)
            mass.append(np.divide(share, total, out=np.ones_like(share), where=total > 0))
    return float(np.mean(hits)), float(np.mean(mass))
