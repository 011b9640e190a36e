"""A draw under temperature, top-k and top-p, as cpp/include/vlkv/draw.h says: one token after the other, float64."""

from __future__ import annotations

import math

import numpy as np


def allowed(logits, temperature, top_k=0, top_p=1.0):
    """The tokens that may be drawn and their weights, by ascending id: `{id: weight}`, the largest weight 1.

    Of equal logits the one with the higher id counts as the more likely one at the edge of the top-p set; top-k keeps
    all that equal the k-th.
    """
    logits = [float(x) for x in logits]
    best = max(logits)
    weight = [math.exp((x - best) / temperature) for x in logits]
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], -token))
    if 1 <= top_k < len(logits):
        lowest = logits[ranked[int(top_k) - 1]]
        ranked = [token for token in ranked if logits[token] >= lowest]
    if top_p < 1:
        beyond = (1 - top_p) * math.fsum(weight[token] for token in ranked)
        while len(ranked) > 1:
            if math.fsum(weight[token] for token in ranked[-1:]) > beyond:
                break
            beyond -= weight[ranked[-1]]
            del ranked[-1]
    return {token: weight[token] for token in sorted(ranked)}


def drawn(logits, temperature, top_k=0, top_p=1.0, uniform=0.0):
    """The drawn token and the largest logit, `(int, float)`; damaged logits and temperatures to 0 take the largest."""
    logits = np.asarray(logits, np.float64)
    best = int(np.argmax(logits))  # the first NaN, or the lowest id of the largest
    if not temperature > 0 or not math.isfinite(logits[best]):
        return best, float(logits[best])
    weights = allowed(logits, temperature, top_k, top_p)
    limit, total = uniform * math.fsum(weights.values()), 0.0
    for token, weight in weights.items():
        total += weight
        if total > limit:
            return token, float(logits[best])
    return max(token for token, weight in weights.items() if weight > 0), float(logits[best])
