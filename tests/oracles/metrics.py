"""Float64 oracles of the figures of `vlkv eval`, computed in other ways than in the package."""

from __future__ import annotations

from functools import cache

import numpy as np

Z = 1.959963984540054


def edit_distance(first: str, second: str) -> int:
    """Edit distance by its recursive definition."""

    @cache
    def rest(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return len(first) - i + len(second) - j
        if first[i] == second[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Bisects for the shares p from which the observed share is less than Z of p's own standard deviations away."""
    share = right / count

    def inside(p: float) -> bool:
        return abs(share - p) <= Z * np.sqrt(p * (1 - p) / count)

    ends = []
    for outer in (0.0, 1.0):
        inner = share
        if not inside(outer) or outer != share:
            low, high = outer, inner
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (low, middle) if inside(middle) else (middle, high)
            inner = high
        ends.append(inner)
    return ends[0], ends[1]


def hit_rate(steps: list, kept: list, tokens: int, budget: float) -> tuple[float, float]:
    """Loops over everything. Ties go to the first token."""
    count = max(1, round(budget * tokens))
    hits, mass = [], []
    for layer in range(len(kept)):
        for attention in steps:
            for head in range(len(kept[layer])):
                seen = [float(x) for x in attention[layer][head][:tokens]]
                order = sorted(range(tokens), key=lambda token: (-seen[token], token))[:count]
                own = set(kept[layer][head].tolist())
                hits.append(len(own & set(order)) / count)
                total = sum(seen)
                mass.append(sum(seen[token] for token in own) / total if total else 1.0)
    return float(np.mean(hits)), float(np.mean(mass))
