"""Eviction while decoding, as plain lists in order of age: a token is appended, a token is removed.

`entries` of one layer and head are positions, oldest first. Sources: StreamingLLM (arXiv 2309.17453), H2O (arXiv
2306.14048), Elastic Cache (arXiv 2407.18121).
"""

from fractions import Fraction
from math import floor


class Sliding:
    """Keeps the first four entries and drops the oldest of the others."""

    def __init__(self, entries, sinks=4):
        self.limit, self.first = len(entries), min(sinks, len(entries))
        self.entries = list(entries)

    def step(self, position):
        """Appends a token and returns the dropped position, or None."""
        self.entries.append(position)
        if len(self.entries) <= self.limit:
            return None
        return self.entries.pop(self.first)


class FixedPoint:
    """Past budget * (T + t) entries, drops the one at a fixed index: `distance` before the end after prefill."""

    def __init__(self, entries, budget, prompt, distance=25):
        self.entries = list(entries)
        # the first token stays, so the point is after it
        self.point = max(len(entries) - distance, min(1, len(entries)))
        self.size, self.prompt, self.tokens = len(entries), prompt, prompt
        self.budget = Fraction(str(budget))

    def step(self, position):
        """Appends a token and returns the dropped position, or None."""
        self.entries.append(position)
        self.tokens += 1
        limit = self.size + floor(self.budget * self.tokens) - floor(self.budget * self.prompt)
        if len(self.entries) <= limit:
            return None
        return self.entries.pop(self.point)


class Lowest:
    """Drops the lowest sum of attention outside the newest half of the budget. Of equal sums it drops the newer."""

    def __init__(self, entries, scores, share=0.5):
        self.limit, self.recent = len(entries), round(share * len(entries))
        self.entries = list(entries)
        self.scores = dict(zip(entries, scores, strict=True))

    def step(self, position, attention):
        """Appends a token and adds `attention`, a mapping from positions. Returns those that may go, lowest first."""
        self.entries.append(position)
        self.scores[position] = 0.0
        for key, weight in attention.items():
            self.scores[key] += weight
        return self.order()

    def order(self):
        """Lists those that may go, lowest first, or none within the limit."""
        if len(self.entries) <= self.limit:
            return []
        free = self.entries[: len(self.entries) - self.recent]
        return sorted(free, key=lambda entry: (self.scores[entry], -entry))

    def drop(self, position):
        """Removes an entry."""
        self.entries.remove(position)
