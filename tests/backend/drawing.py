"""What the kernel Draw does, by the definition in its header, for the stand-ins of devices. Imports nothing of vlkv."""

from __future__ import annotations

import numpy as np

ONE = 2.0**40


def drawn(logits, choices):
    """Tokens and largest logits of rows `[B,V]` under `[B,4]`: temperature, top-k, top-p and the random number."""
    tokens, best = logits.argmax(1), logits.max(1)
    for row, (temperature, k, p, random) in enumerate(choices):
        values = logits[row].astype(np.float64)
        if not np.isfinite(best[row]) or not temperature > 0:
            continue
        weights = np.rint(np.exp((values - float(best[row])) / temperature) * ONE)
        if 1 <= k < len(values):
            weights[values < np.sort(values)[-int(k)]] = 0
        if p < 1:
            # ascending, of equal logits the lowest id first: the set is the end of it
            order = np.argsort(values, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            outside = before + weights[order] <= (1 - p) * weights.sum()
            outside[-1] = False
            weights[order[outside]] = 0
        tokens[row] = np.argmax(np.cumsum(weights) > random * weights.sum())
    return tokens, best
