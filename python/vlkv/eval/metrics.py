"""Metrics of answers, and means over samples with 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

Z = 1.959963984540054
"""The normal distribution's 97.5% point."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """A mean with its 95% interval, within 0 to 1 if the values are."""

    value: float
    low: float
    high: float


def exact(answer: str, expected: str) -> bool:
    """Whether both are equal, apart from blanks at the ends."""
    return answer.strip() == expected.strip()


def similarity(answer: str, expected: str) -> float:
    """1 - edit distance / the longer length, in characters (insert, delete, replace); 1 for two empty texts."""
    first, second = answer.strip(), expected.strip()
    longest = max(len(first), len(second))
    return 1.0 if not longest else 1.0 - edit_distance(first, second) / longest


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance: the fewest insertions, deletions or replacements. O(len * len) time, O(len) memory."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def proportion(right: Sequence[bool]) -> Mean:
    """A share with Wilson's score interval (E. B. Wilson 1927), which is valid at 0% and 100% too."""
    count = len(right)
    share = sum(right) / count
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Mean(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def average(values: Sequence[float]) -> Mean:
    """A mean with a percentile bootstrap interval; equal values give equal intervals."""
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(len(array))
    means = [array[rng.integers(len(array), size=len(array))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(float(array.mean()), float(low), float(high))
