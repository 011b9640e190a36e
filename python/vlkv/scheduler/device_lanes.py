"""Lanes on a device: rows of arrays that are made once, so that steps of a batch size are bound and recorded once.

L layers, B lanes, C cache slots of a layer, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from vlkv.backend.base import Backend, Steps
from vlkv.backend.cache import Cache
from vlkv.backend.device.arrays import DeviceArray
from vlkv.backend.device.backend import DeviceBackend
from vlkv.dtypes import Int64

BATCH_SIZES = 16
"""How many batch sizes keep their recorded steps: those that were used last."""


class DeviceLanes:
    """See `vlkv.scheduler.lanes.LaneCache`, whose place it takes.

    Args:
        backend: of caches that are updated in place.
        lanes: B.
        capacity: C_l, `[L]`, in whole steps of `vlkv.scheduler.device_plan.row_step`.

    Attributes:
        length: valid tokens `[L, B]`.
    """

    def __init__(self, backend: DeviceBackend, lanes: int, capacity: Sequence[int]) -> None:
        text, self._device, self._store = backend.text, backend.device, backend.store
        shapes = [(lanes, text.kv_heads, tokens, text.head_dim) for tokens in capacity]
        self._keys: list[DeviceArray] = [self._store.empty(shape) for shape in shapes]
        self._values: list[DeviceArray] = [self._store.empty(shape) for shape in shapes]
        self.length: Int64 = np.zeros((len(capacity), lanes), np.int64)
        self._steps: OrderedDict[int, tuple[Cache, Steps]] = OrderedDict()

    @property
    def lanes(self) -> int:
        """How many there are."""
        return int(self.length.shape[1])

    def one(self, lane: int) -> Cache:
        """A lane as an empty cache of its own; its lengths are not ours until `settle`."""
        return self._view(lane, lane + 1, np.zeros((len(self._keys), 1), np.int64))

    def first(self, count: int) -> Cache:
        """The first lanes as one cache; its lengths are a copy, to be given back with `settle`.

        For a batch size whose steps are kept it is their cache.
        """
        if count in self._steps:
            cache = self._steps[count][0]
            cache.length[:] = self.length[:, :count]
            return cache
        return self._view(0, count, self.length[:, :count].copy())

    def steps(self, backend: Backend, cache: Cache) -> Steps:
        """The loop over what `first` gave."""
        count = cache.batch
        if count not in self._steps:
            self._steps[count] = cache, backend.steps(cache)
            if len(self._steps) > BATCH_SIZES:
                _, (_, oldest) = self._steps.popitem(last=False)
                oldest.close()
        self._steps.move_to_end(count)
        return self._steps[count][1]

    def settle(self, cache: Cache, lane: int = 0) -> None:
        """Takes over the lengths of a view that begins at `lane`."""
        self.length[:, lane : lane + cache.batch] = cache.length

    def move(self, source: int, target: int) -> None:
        """Copies one lane's tokens to another, and releases it."""
        self._device.use()
        self.length[:, target] = self.length[:, source]
        for layer, tokens in enumerate(self.length[:, source].tolist()):
            for kind in (self._keys[layer], self._values[layer]):
                self._device.copy(kind[target, :, :tokens], kind[source, :, :tokens])
        self.release(source)

    def exchange(self, one: int, length: Int64, other: int, others: Int64) -> None:
        """Lets two lanes hold each other's tokens, `[L]` of them; a layer at a time is there twice."""
        self._device.use()
        for layer, (here, there) in enumerate(zip(length.tolist(), others.tolist(), strict=True)):
            for kind in (self._keys[layer], self._values[layer]):
                held = self._store.empty((1, *kind.shape[1:]))
                self._device.copy(held[0, :, :here], kind[one, :, :here])
                self._device.clear(kind.rows(one, one + 1))
                self._device.copy(kind[one, :, :there], kind[other, :, :there])
                self._device.clear(kind.rows(other, other + 1))
                self._device.copy(kind[other, :, :here], held[0, :, :here])

    def point(self, view: Cache, lane: int) -> None:
        """Lets a cache of one lane be another lane's."""
        view.keys[:] = [kind.rows(lane, lane + 1) for kind in self._keys]
        view.values[:] = [kind.rows(lane, lane + 1) for kind in self._values]

    def release(self, lane: int) -> None:
        """Writes zeros over a lane: what an answer leaves may be NaN, and 0 times NaN is NaN for the next one."""
        self._device.use()
        for kind in (*self._keys, *self._values):
            self._device.clear(kind.rows(lane, lane + 1))

    def reset(self) -> None:
        """Lets go of recorded steps, after one that failed."""
        for _, steps in self._steps.values():
            steps.close()
        self._steps.clear()

    def close(self) -> None:
        """Gives everything back."""
        self.reset()
        self._keys, self._values = [], []

    def _view(self, first: int, last: int, length: Int64) -> Cache:
        keys, values = ([kind.rows(first, last) for kind in kinds] for kinds in (self._keys, self._values))
        return Cache(keys, values, length, self._store)
