"""Decoding on a device: everything is bound once, and a step that observes nothing is one recorded piece of work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Floats, Ints, Observation
from vlkv.backend.device import DeviceArray
from vlkv.cache import Cache

if TYPE_CHECKING:
    from vlkv.backend.device_backend import DeviceBackend

DECODE = 1


class DeviceSteps:
    """A loop of single-token steps over one cache.

    Static caches are updated in place. Dynamic ones are written anew by every step, from one of two sets of arrays into
    the other and back; the cache holds the set that was written last.

    Attributes:
        logits: `[B,V]` float32 of the last step, in pinned memory; the next step overwrites it.
        observation: of the last step that watched.
    """

    def __init__(self, backend: DeviceBackend, cache: Cache) -> None:
        self._backend, self._cache, device, text = backend, cache, backend.device, backend.text
        batch = cache.batch
        self.logits: Floats = device.pinned((batch, text.vocab), "float32")
        self.observation = Observation([], [], None)
        sizes = {
            "inputs_embeds": ((batch, 1, text.hidden), "float32"),
            "position_ids": ((batch, 1), "int64"),
            "length": ((text.layers, batch), "int64"),
        }
        self._host = {name: device.pinned(*size) for name, size in sizes.items()}
        self._given = {name: device.allocate(*size) for name, size in sizes.items()}
        self._no_rows = device.allocate((batch, 0), "int64")
        self._outputs = backend.outputs(cache, 0)
        self._sets = [(cache.keys, cache.values), backend.target(cache)]
        self._now = 0
        self._plain = [device.replay(partial(self._run, now)) for now in (0, 1)]

    def step(
        self,
        embeds: Floats,
        positions: Ints,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """See `vlkv.backend.base.Steps.step`; `watched [B]` are prompts whose token is observed too."""
        self._host["inputs_embeds"][:, 0] = embeds
        self._host["position_ids"][:, 0] = positions
        self._host["length"][:] = self._cache.length
        if watched is None:
            self._plain[self._now]()
            self._turn()
        else:
            self._watch(np.where(watched, 0, -1)[:, np.newaxis].astype(np.int64))
        self._backend.device.synchronize()
        self._cache.length += active
        return self.logits

    def overwrite(self, slots: Ints) -> None:
        """See `vlkv.backend.base.Steps.overwrite`."""
        self._cache.overwrite(slots)

    def _turn(self) -> None:
        self._now = 0 if self._backend.in_place else 1 - self._now
        self._cache.keys, self._cache.values = self._sets[self._now]

    def _run(self, now: int) -> None:
        self._enqueue(now, self._no_rows, self._outputs)

    def _enqueue(self, now: int, rows: DeviceArray, outputs: dict[str, DeviceArray]) -> None:
        backend, device = self._backend, self._backend.device
        for name, array in self._given.items():
            device.upload(array, self._host[name])
        inputs = self._given | {"row_index": rows} | backend.caches(*self._sets[now])
        made = outputs | backend.caches(*self._sets[now if backend.in_place else 1 - now], prefix="new_")
        backend.graphs["decoder"].run(inputs, made, DECODE)
        device.download(self.logits, outputs["logits"])

    def _watch(self, rows: Ints) -> None:
        backend, cache = self._backend, self._cache
        index = backend.device.allocate(rows.shape, "int64")
        backend.device.upload(index, rows)
        outputs = backend.outputs(cache, 1)
        self._enqueue(self._now, index, outputs)
        self._turn()
        places = np.where(rows < 0, -1, cache.length[:, :, np.newaxis] + rows)
        self.observation = backend.observed(outputs, cache, places)
