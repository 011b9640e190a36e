"""The KV cache: one pair of arrays a layer, each layer with a capacity and lengths of its own.

B prompts, C cache slots, Hkv key/value heads, D head dimension, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.manifest import TextFacts

Array = Any
"""A NumPy array of float32, or a device's array with the same slicing."""


class Store(Protocol):
    """Where the arrays of a cache lie."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """An array `[B, Hkv, C, D]` of any content."""
        ...

    def assign(self, target: Array, source: Array) -> None:
        """Copies one view into another."""
        ...


class HostStore:
    """NumPy arrays of float32."""

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """See `Store.empty`. Pages that no token reaches stay untouched."""
        return np.empty(shape, np.float32)

    def assign(self, target: Array, source: Array) -> None:
        """See `Store.assign`."""
        target[...] = source


HOST = HostStore()


class Cache:
    """Keys and values of B prompts.

    Attributes:
        keys: per layer `[B, Hkv, C_l, D]`.
        values: the same shapes.
        length: valid slots `[L, B]`, int64; a layer's slots past its length hold anything.
        store: where the arrays lie.
    """

    def __init__(
        self, keys: list[Array], values: list[Array], length: NDArray[np.int64], store: Store = HOST
    ) -> None:
        self.keys = keys
        self.values = values
        self.length = length
        self.store = store

    @classmethod
    def empty(cls, text: TextFacts, capacity: int, store: Store = HOST) -> Cache:
        """A cache for one prompt with `capacity` slots in every layer. Pages that no token reaches stay untouched."""
        shape = (1, text.kv_heads, capacity, text.head_dim)
        keys, values = ([store.empty(shape) for _ in range(text.layers)] for _ in range(2))
        return cls(keys, values, np.zeros((text.layers, 1), np.int64), store)

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
        keys, values = ([self.store.empty(shape) for shape in shapes] for _ in range(2))
        return Cache(keys, values, np.zeros((len(capacity), batch), np.int64), self.store)

    def free(self, layer: int) -> None:
        """Lets a layer's arrays go."""
        batch, heads, _, dim = self.keys[layer].shape
        self.keys[layer] = self.values[layer] = self.store.empty((batch, heads, 0, dim))


def join(parts: list[Cache], room: int) -> Cache:
    """One cache of several prompts, with `room` slots behind each layer's longest. The parts are emptied.

    It goes layer by layer, so that one layer at most exists twice. A single part is returned as it is.
    """
    if len(parts) == 1:
        return parts[0]
    length = np.concatenate([part.length for part in parts], axis=1)
    joined = parts[0].like([0] * len(length), len(parts))
    for layer, longest in enumerate(length.max(axis=1)):
        for kind in ("keys", "values"):
            _, heads, _, dim = getattr(parts[0], kind)[layer].shape
            array = joined.store.empty((len(parts), heads, int(longest) + room, dim))
            for row, part in enumerate(parts):
                valid = int(part.length[layer, 0])
                joined.store.assign(array[row, :, :valid], getattr(part, kind)[layer][0, :, :valid])
            getattr(joined, kind)[layer] = array
        for part in parts:
            part.free(layer)
    joined.length[:] = length
    return joined
