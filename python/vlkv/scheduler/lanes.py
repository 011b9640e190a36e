"""The one cache of all running answers: a pair of arrays a layer with a row for each lane, made once.

Only addresses are made. A page of memory is there from the first token that reaches it until its lane is released,
so that an answer takes what it needs however large its lane could grow. Running answers are the first rows, so that a
step's batch is a view. L layers, B lanes, C cache slots of a layer, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import numpy as np

from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32, Int64
from vlkv.storage.manifest import TextFacts

NO_RESERVE = 0x4000
"""Linux's MAP_NORESERVE: no memory is promised for addresses that may never be touched."""


class Reserved:
    """An array of float32 whose pages can be given back.

    Attributes:
        array: it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.array: Float32
        self._memory: mmap.mmap | None = None
        size = prod(shape) * 4
        if not size or not hasattr(mmap, "MADV_DONTNEED"):
            self.array = np.empty(shape, np.float32)
            return
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        self._memory = mmap.mmap(-1, size, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # a huge page for the first token of each head would take more than most answers do
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._memory, np.float32).reshape(shape)

    def release(self, row: int) -> None:
        """Gives the pages of one row back; its content is undefined after that."""
        if self._memory is None:
            return
        size = self.array[0].nbytes
        first = -(-row * size // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (row + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)


class LaneCache:
    """Arrays `[B, Hkv, C_l, D]`.

    Args:
        text: the model's sizes.
        lanes: B.
        capacity: C_l, `[L]`.

    Attributes:
        length: valid tokens `[L, B]`.
    """

    def __init__(self, text: TextFacts, lanes: int, capacity: Sequence[int]) -> None:
        shapes = [(lanes, text.kv_heads, tokens, text.head_dim) for tokens in capacity]
        self._keys, self._values = ([Reserved(shape) for shape in shapes] for _ in range(2))
        self.length: Int64 = np.zeros((len(capacity), lanes), np.int64)

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
        """Copies one lane's tokens to another and releases it, a layer at a time."""
        self.length[:, target] = self.length[:, source]
        for layer, tokens in enumerate(self.length[:, source].tolist()):
            for kind in (self._keys[layer], self._values[layer]):
                kind.array[target, :, :tokens] = kind.array[source, :, :tokens]
                kind.release(source)

    def exchange(self, one: int, length: Int64, other: int, others: Int64) -> None:
        """Lets two lanes hold each other's tokens, `[L]` of them; a layer at a time is there twice."""
        for layer, (here, there) in enumerate(zip(length.tolist(), others.tolist(), strict=True)):
            for kind in (self._keys[layer], self._values[layer]):
                held = kind.array[one, :, :here].copy()
                kind.release(one)
                kind.array[one, :, :there] = kind.array[other, :, :there]
                kind.release(other)
                kind.array[other, :, :here] = held

    def point(self, view: Cache, lane: int) -> None:
        """Lets a cache of one lane be another lane's."""
        view.keys[:] = [kind.array[lane : lane + 1] for kind in self._keys]
        view.values[:] = [kind.array[lane : lane + 1] for kind in self._values]

    def release(self, lane: int) -> None:
        """Gives a lane's memory back."""
        for kind in (*self._keys, *self._values):
            kind.release(lane)

    def _view(self, rows: slice, length: Int64) -> Cache:
        keys, values = ([kind.array[rows] for kind in kinds] for kinds in (self._keys, self._values))
        return Cache(keys, values, length)
