"""The one cache of all running answers: per layer one pair of arrays with a row for each lane, allocated once.

Allocation reserves addresses only. A page of memory exists from the first token that is written to it until its lane
is released, so an answer occupies what it needs, however large its lane could grow. Running answers occupy the first
rows, so a step's batch is a view. L layers, B lanes, C cache slots of a layer, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import numpy as np

from vlkv.backend.base import Backend, Steps
from vlkv.backend.cache import HOST, Cache
from vlkv.backend.device.backend import DeviceBackend
from vlkv.dtypes import Float32, Int64
from vlkv.model import Model
from vlkv.scheduler.device_lanes import DeviceLanes
from vlkv.storage.manifest import TextFacts

NO_RESERVE = 0x4000
"""Linux's MAP_NORESERVE: the kernel reserves no memory for addresses that may never be touched."""


class Reserved:
    """A float32 array whose pages can be returned to the operating system.

    Attributes:
        array: the array.
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
            # with huge pages the first token of each head would occupy more memory than most whole answers
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._memory, np.float32).reshape(shape)

    def release(self, row: int) -> None:
        """Returns the pages of one row; the row's content is undefined afterwards."""
        if self._memory is None:
            return
        size = self.array[0].nbytes
        first = -(-row * size // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (row + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)


class LaneCache:
    """The keys and values of all lanes, as arrays `[B, Hkv, C_l, D]` per layer.

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
        """The number of lanes, B."""
        return int(self.length.shape[1])

    def one(self, lane: int) -> Cache:
        """One lane as an empty cache with lengths of its own; `settle` copies them back."""
        return self._view(slice(lane, lane + 1), np.zeros((len(self._keys), 1), np.int64))

    def first(self, count: int) -> Cache:
        """The first `count` lanes as one cache. Its lengths are a copy; `settle` copies them back."""
        return self._view(slice(0, count), self.length[:, :count].copy())

    def settle(self, cache: Cache, lane: int = 0) -> None:
        """Copies the lengths of a view that begins at `lane`."""
        self.length[:, lane : lane + cache.batch] = cache.length

    def move(self, source: int, target: int) -> None:
        """Copies the tokens of lane `source` to lane `target` and releases `source`, one layer at a time."""
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
        """Returns a lane's memory to the operating system."""
        for kind in (*self._keys, *self._values):
            kind.release(lane)

    def steps(self, backend: Backend, cache: Cache) -> Steps:
        """A loop over what `first` gave."""
        return backend.steps(cache)

    def reset(self) -> None:
        """Lets go of what steps keep: nothing here."""

    def close(self) -> None:
        """Gives everything back; addresses go with the last view."""

    def _view(self, rows: slice, length: Int64) -> Cache:
        keys, values = ([kind.array[rows] for kind in kinds] for kinds in (self._keys, self._values))
        return Cache(keys, values, length)


Lanes = LaneCache | DeviceLanes


def lanes_of(model: Model, lanes: int, capacity: Sequence[int]) -> Lanes:
    """Lanes where the model's caches lie."""
    backend = model.backend
    if backend.store is HOST:
        return LaneCache(model.manifest.text, lanes, capacity)
    assert isinstance(backend, DeviceBackend)
    return DeviceLanes(backend, lanes, capacity)
