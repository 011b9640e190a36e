"""The one cache of all running answers: a pair of arrays a layer with a row for each lane, made once.

Running answers are the first rows, so that a step's batch is a view. L layers, B lanes, C cache slots of a layer,
Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.cache import Cache
from vlkv.storage.manifest import TextFacts


class LaneCache:
    """Arrays `[B, Hkv, C_l, D]`. Pages that no token reaches stay untouched.

    Args:
        text: the model's sizes.
        lanes: B.
        capacity: C_l, `[L]`.

    Attributes:
        length: valid tokens `[L, B]`.
    """

    def __init__(self, text: TextFacts, lanes: int, capacity: Sequence[int]) -> None:
        shapes = [(lanes, text.kv_heads, tokens, text.head_dim) for tokens in capacity]
        self._keys, self._values = ([np.zeros(shape, np.float32) for shape in shapes] for _ in range(2))
        self.length: NDArray[np.int64] = np.zeros((len(capacity), lanes), np.int64)

    @property
    def lanes(self) -> int:
        """How many there are."""
        return int(self.length.shape[1])

    def one(self, lane: int) -> Cache:
        """A lane as an empty cache of its own; its lengths are not ours until `settle`."""
        return self._view(slice(lane, lane + 1), np.zeros((len(self._keys), 1), np.int64))

    def first(self, count: int) -> Cache:
        """The first lanes as one cache; its lengths are a copy, to be given back with `settle`."""
        return self._view(slice(0, count), self.length[:, :count].copy())

    def settle(self, cache: Cache, lane: int = 0) -> None:
        """Takes over the lengths of a view that begins at `lane`."""
        self.length[:, lane : lane + cache.batch] = cache.length

    def move(self, source: int, target: int) -> None:
        """Copies one lane's tokens to another."""
        self.length[:, target] = self.length[:, source]
        for layer, tokens in enumerate(self.length[:, source].tolist()):
            for array in (self._keys[layer], self._values[layer]):
                array[target, :, :tokens] = array[source, :, :tokens]

    def _view(self, rows: slice, length: NDArray[np.int64]) -> Cache:
        return Cache([array[rows] for array in self._keys], [array[rows] for array in self._values], length)
