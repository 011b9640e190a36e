"""The ratio of two times from interleaved pairs, with a bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
LEVEL = 0.99


@dataclass(frozen=True)
class Ratio:
    """The candidate's time over the best's: the median of the pairs, and the interval of that median at 99 percent."""

    value: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high < 1


def ratio(pairs: list[tuple[float, float]], seed: int = 0) -> Ratio:
    """Returns the ratio of (best, candidate) seconds; the bootstrap draws whole pairs, whose two share a moment."""
    rng = np.random.default_rng(seed)
    logs = np.log(np.array([new / old for old, new in pairs], dtype=np.float64))
    drawn = np.median(logs[rng.integers(0, len(logs), size=(RESAMPLES, len(logs)))], axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(*(float(np.exp(value)) for value in (np.median(logs), low, high)))
