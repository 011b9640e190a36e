"""The KV cache: one pair of arrays a layer, each layer with a capacity and lengths of its own.

B prompts, C cache slots, Hkv key/value heads, D head dimension, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlkv.manifest import TextFacts

Array = NDArray[np.float32]


class Cache:
    """Keys and values of B prompts.

    Attributes:
        keys: per layer `[B, Hkv, C_l, D]`.
        values: the same shapes.
        length: valid slots `[L, B]`, int64; a layer's slots past its length hold anything.
    """

    def __init__(self, keys: list[Array], values: list[Array], length: NDArray[np.int64]) -> None:
        self.keys = keys
        self.values = values
        self.length = length
        self._overwriting: Overwriting | None = None

    @classmethod
    def empty(cls, text: TextFacts, capacity: int) -> Cache:
        """A cache for one prompt with `capacity` slots in every layer. Pages that no token reaches stay untouched."""
        shape = (1, text.kv_heads, capacity, text.head_dim)
        keys, values = ([np.empty(shape, np.float32) for _ in range(text.layers)] for _ in range(2))
        return cls(keys, values, np.zeros((text.layers, 1), np.int64))

    @property
    def batch(self) -> int:
        """Number of prompts (B)."""
        return int(self.length.shape[1])

    @property
    def bytes(self) -> int:
        """Bytes of the arrays that are alive, room for new tokens included."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def capacity(self, layer: int) -> int:
        """Slots of a layer (C_l)."""
        return int(self.keys[layer].shape[2])

    def like(self, capacity: Sequence[int], batch: int = 1) -> Cache:
        """An empty cache of the same heads and dtype, of other capacities."""
        _, heads, _, dim = self.keys[0].shape
        shapes = [(batch, heads, slots, dim) for slots in capacity]
        keys, values = ([np.empty(shape, np.float32) for shape in shapes] for _ in range(2))
        return Cache(keys, values, np.zeros((len(capacity), batch), np.int64))

    def free(self, layer: int) -> None:
        """Lets a layer's arrays go."""
        gone = self.keys[layer][:, :, :0].copy()
        self.keys[layer] = self.values[layer] = gone
        self._overwriting = None

    def grown(self, room: int) -> Cache:
        """The same tokens in arrays with `room` slots behind each layer's longest. This one is emptied."""
        return join([self], [int(longest) + room for longest in self.length.max(axis=1)])

    def overwrite(self, slots: NDArray[np.int64]) -> None:
        """Each prompt's last token takes the place of another, and the length goes down by one.

        Attention does not depend on the order of slots, so that this is all that dropping a token needs: D numbers
        a head are moved, nothing is allocated but for the first call's buffers.

        Args:
            slots: `[L, B, Hkv]` int64, the slot to overwrite, under the length; -1 leaves a layer of a prompt alone
                (in all of its heads).
        """
        if self._overwriting is None:
            self._overwriting = Overwriting(self)
        self._overwriting.run(slots)


class Overwriting:
    """The buffers of `Cache.overwrite`; a cache's arrays are seen as rows `[B * Hkv * C, D]`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        batch, heads = cache.batch, cache.keys[0].shape[1]
        self._rows = [
            [array.reshape(-1, array.shape[3]) for array in (keys, values)]
            for keys, values in zip(cache.keys, cache.values, strict=True)
        ]
        self._first = [
            (np.arange(batch * heads) * cache.capacity(layer)).reshape(batch, heads)
            for layer in range(len(cache.keys))
        ]
        self._from, self._to = (np.empty((batch, heads), np.int64) for _ in range(2))
        self._moved = np.empty((batch, heads, cache.keys[0].shape[3]), np.float32)

    def run(self, slots: NDArray[np.int64]) -> None:
        """See `Cache.overwrite`."""
        length = self._cache.length
        for layer, (rows, first) in enumerate(zip(self._rows, self._first, strict=True)):
            drops = slots[layer, :, 0] >= 0
            if not drops.any():
                continue
            last = np.maximum(length[layer] - 1, 0)[:, np.newaxis]
            np.add(first, last, out=self._from)
            np.add(first, np.where(drops[:, np.newaxis], slots[layer], last), out=self._to)
            for array in rows:
                np.take(array, self._from, axis=0, out=self._moved, mode="clip")
                array[self._to] = self._moved
            length[layer] -= drops


def join(parts: list[Cache], capacity: Sequence[int] | None = None) -> Cache:
    """One cache of several prompts, of the given capacity a layer, or the largest of the parts'. The parts are emptied.

    It goes layer by layer, so that one layer at most exists twice. A single part with no capacity given is returned
    as it is.
    """
    if capacity is None:
        if len(parts) == 1:
            return parts[0]
        capacity = [max(part.capacity(layer) for part in parts) for layer in range(len(parts[0].keys))]
    length = np.concatenate([part.length for part in parts], axis=1)
    joined = parts[0].like([0] * len(length), len(parts))
    for layer, slots in enumerate(capacity):
        for kind in ("keys", "values"):
            _, heads, _, dim = getattr(parts[0], kind)[layer].shape
            array = np.empty((len(parts), heads, slots, dim), np.float32)
            for row, part in enumerate(parts):
                valid = int(part.length[layer, 0])
                array[row, :, :valid] = getattr(part, kind)[layer][0, :, :valid]
            getattr(joined, kind)[layer] = array
        for part in parts:
            part.free(layer)
    joined.length[:] = length
    return joined
