"""Keeps the image tokens whose features differ most from each other.

Source: DivPrune (arXiv 2503.02175): the max-min diversity problem over cosine distance, solved greedily. T tokens, k
kept ones.
"""

from __future__ import annotations

import numpy as np

from vlkv.dtypes import Float32, Int64
from vlkv.pruning.picture import Picture, unit_rows
from vlkv.pruning.share import Share

BLOCK = 512
"""Rows of the distances that exist at once while the first token is chosen."""


class Diverse(Share):
    """Keeps the share whose features differ most.

    The first is the token whose nearest neighbour is the farthest; each further one has the largest distance to its
    nearest kept token. Ties go to the earlier token. Features of zero length, or with NaN, are far (1) from all.
    """

    name = "diverse"

    def choose(self, picture: Picture, count: int) -> Int64:
        """See `Share.choose`."""
        return most_diverse(picture.features[picture.shown], count)


def most_diverse(features: Float32, count: int) -> Int64:
    """The numbers of `count` rows of `[T, hidden]`, in the order of their choice."""
    unit = unit_rows(features)
    nearest = _nearest_neighbours(unit) if len(unit) > 1 else np.ones(1, np.float32)
    chosen = [int(nearest.argmax())]
    nearest = 1 - unit @ unit[chosen[0]]
    while len(chosen) < count:
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        np.minimum(nearest, 1 - unit @ unit[chosen[-1]], out=nearest)
    return np.array(chosen, np.int64)


def _nearest_neighbours(unit: Float32) -> Float32:
    """Each row's distance `[T]` to the nearest other row of `[T, hidden]`."""
    nearest = np.empty(len(unit), np.float32)
    for first in range(0, len(unit), BLOCK):
        block = unit[first : first + BLOCK]
        distance = 1 - block @ unit.T
        own = np.arange(len(block))
        distance[own, first + own] = np.inf
        nearest[first : first + BLOCK] = distance.min(axis=1)
    return nearest
