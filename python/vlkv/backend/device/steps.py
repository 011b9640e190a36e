"""The loop of single-token steps on a device: one copy there, the graphs, copies back, one wait.

B prompts, C cache slots, Hkv key/value heads, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import NOTHING, Choice, Observation, Picked
from vlkv.backend.cache import Cache
from vlkv.backend.device.arrays import Bound, Device, DeviceArray, Graph, Mover, Replay
from vlkv.dtypes import Float32, Int64
from vlkv.storage.manifest import BYTES, TextFacts

DECODE = 1
"""The decoder's optimization profile."""
ALIGNED = 256
"""Bytes that arrays in one piece of memory are aligned to."""
LOGITS, GREEDY, DRAWN = "logits", "greedy", "drawn"
"""What a step brings to the host: all logits, or the tokens of the largest ones, or drawn tokens."""

Pair = tuple[list[DeviceArray], list[DeviceArray]]
"""Keys and values, a device array per layer."""


class Opened(Protocol):
    """What steps need of a backend; see `vlkv.backend.device.backend.DeviceBackend`."""

    device: Device
    graphs: Mapping[str, Graph]
    text: TextFacts
    scores: bool
    in_place: bool

    def target(self, cache: Cache) -> Pair:
        """The arrays that a call writes."""
        ...

    def caches(
        self, keys: list[DeviceArray], values: list[DeviceArray], prefix: str = ""
    ) -> dict[str, DeviceArray]:
        """The decoder's names for them."""
        ...

    def outputs(self, cache: Cache, rows: int) -> dict[str, DeviceArray]:
        """New arrays for the decoder's other outputs."""
        ...

    def score_arrays(
        self, outputs: Mapping[str, DeviceArray], cache: Cache, layer: int
    ) -> tuple[dict[str, DeviceArray], dict[str, DeviceArray]]:
        """Inputs and outputs of the score graph."""
        ...

    def observation(self, seen: list[Float32]) -> Observation:
        """What was observed, from the arrays that were read back."""
        ...


class Packed:
    """Small arrays side by side in pinned memory and on the device, so that one copy takes all there.

    Attributes:
        host, there: by name.
    """

    def __init__(self, device: Device, sizes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        self._device = device
        places, end = {}, 0
        for name, (shape, dtype) in sizes.items():
            places[name] = end
            end += -(-prod(shape) * BYTES[dtype] // ALIGNED) * ALIGNED
        self._host: NDArray[np.int32] = device.pinned((end // 4,), "int32")
        self._there = device.allocate((end // 4,), "int32")
        self.host: dict[str, NDArray[np.generic]] = {}
        self.there: dict[str, DeviceArray] = {}
        for name, (shape, dtype) in sizes.items():
            begin, size = places[name], prod(shape) * BYTES[dtype]
            flat = self._host.view(np.uint8)[begin : begin + size]
            self.host[name] = flat.view(np.dtype(dtype)).reshape(shape)
            offset = begin // BYTES[dtype]
            self.there[name] = DeviceArray(self._there.memory, shape, dtype, offset=offset)

    def send(self) -> None:
        """Enqueues the copy."""
        self._device.upload(self._there, self._host)


class _Step:
    """All that one kind of step enqueues, bound once: it can be recorded. It does not know whose it is.

    Args:
        backend: whose graphs run.
        given: what the host gives.
        cache: of the arrays that are read.
        target: keys and values that are written.
        results: where logits go, or the chosen tokens and the largest logits.
        watched: whether the tokens are observed.
        draws: whether tokens are drawn as `given` says, or are those of the largest logits.

    Attributes:
        seen: what was observed, in pinned memory.
    """

    def __init__(
        self,
        backend: Opened,
        given: Packed,
        cache: Cache,
        target: Pair,
        results: Float32 | Picked,
        watched: bool,
        draws: bool,
    ) -> None:
        device, text = backend.device, backend.text
        self._draws = draws
        self._device, self._given = device, given
        names = ("inputs_embeds", "position_ids", "length")
        inputs = {name: given.there[name] for name in names}
        inputs["row_index"] = (
            given.there["row_index"] if watched else device.allocate((cache.batch, 0), "int64")
        )
        outputs = backend.outputs(cache, int(watched))
        written = backend.caches(*target, prefix="new_")
        caches = backend.caches(cache.keys, cache.values)
        self._bound: list[Bound] = [
            backend.graphs["decoder"].bind(inputs | caches, outputs | written, DECODE)
        ]
        self._logits = outputs["logits"]
        self._picked: tuple[DeviceArray, DeviceArray] | None = None
        self._back: list[tuple[NDArray[Any], DeviceArray]]
        if isinstance(results, Picked):
            tokens, best = (device.allocate((cache.batch,), dtype) for dtype in ("int32", "float32"))
            self._picked = tokens, best
            self._back = [(results.tokens, tokens), (results.best, best)]
        else:
            self._back = [(results, self._logits)]
        self._alive = (cache.keys, cache.values)
        self.seen: list[Float32] = []
        if watched:
            self._observe(backend, outputs, Cache(*target, cache.length, cache.store), range(text.layers))
        self.capturable = all(bound.capturable for bound in self._bound)

    def _observe(
        self, backend: Opened, outputs: Mapping[str, DeviceArray], cache: Cache, layers: range
    ) -> None:
        if backend.scores:
            found = [*(outputs[f"score.{layer}"] for layer in layers), outputs["sparsity"]]
        else:
            made = []
            for layer in layers:
                inputs, result = backend.score_arrays(outputs, cache, layer)
                inputs["row_position"] = self._given.there[f"row_position.{layer}"]
                self._bound.append(backend.graphs["score"].bind(inputs, result))
                made.append(result)
            found = [*(result["score"] for result in made), *(result["sparsity"] for result in made)]
        self.seen = [self._device.pinned(array.shape, array.dtype) for array in found]
        self._back += zip(self.seen, found, strict=True)

    def __call__(self) -> None:
        self._given.send()
        for bound in self._bound:
            bound()
        if self._picked is not None and self._draws:
            self._device.draw(self._logits, self._given.there["choice"], *self._picked)
        elif self._picked is not None:
            self._device.pick(self._logits, *self._picked)
        for host, array in self._back:
            self._device.download(host, array)

    def close(self) -> None:
        """Lets go of the graphs' states."""
        for bound in self._bound:
            bound.close()


class DeviceSteps:
    """A loop of single-token steps over one cache: see `vlkv.backend.base.Steps`.

    Caches that are updated in place are bound once. Others are written anew by every step, from one of two sets of
    arrays into the other and back; the cache holds the set that was written last.

    Attributes:
        logits: `[B,V]` float32 of the last step, in pinned memory; the next step overwrites it.
        observation: of the last step that watched.
        picked: of the last step, if a choice was given and the device has a kernel for it: the logits stay there.
        draws: whether it has one that draws.
    """

    def __init__(self, backend: Opened, cache: Cache) -> None:
        self._backend, self._cache, device, text = backend, cache, backend.device, backend.text
        batch, rows = cache.batch, {}
        self.logits: Float32 = device.pinned((batch, text.vocab), "float32")
        self.observation: Observation = NOTHING
        self.picked: Picked | None = None
        self.draws = device.draws
        self._own = Picked(device.pinned((batch,), "int32"), device.pinned((batch,), "float32"))
        if not backend.scores:
            rows = {f"row_position.{layer}": ((batch, 1), "int64") for layer in range(text.layers)}
        self._given = Packed(
            device,
            {
                "inputs_embeds": ((batch, 1, text.hidden), "float32"),
                "position_ids": ((batch, 1), "int64"),
                "length": ((text.layers, batch), "int64"),
                "row_index": ((batch, 1), "int64"),
                "choice": ((batch, 4), "int64"),
            }
            | rows,
        )
        self._sets = [(cache.keys, cache.values), backend.target(cache)]
        self._now = 0
        self._steps: dict[tuple[int, bool, str], tuple[_Step, Replay]] = {}
        self._moves: dict[int, Mover | None] = {}

    def step(
        self,
        embeds: Float32,
        positions: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
        choice: Choice | None = None,
    ) -> Float32:
        """See `vlkv.backend.base.Steps.step`; `watched [B]` are prompts whose token is observed too."""
        backend, host = self._backend, self._given.host
        backend.device.use()
        host["inputs_embeds"][:, 0] = embeds
        host["position_ids"][:, 0] = positions
        host["length"][:] = self._cache.length
        if watched is not None:
            host["row_index"][:, 0] = np.where(watched, 0, -1)
            if not backend.scores:
                for layer, places in enumerate(np.where(watched, self._cache.length, -1)):
                    host[f"row_position.{layer}"][:, 0] = places
        how = LOGITS
        if choice is not None and self.draws and choice[:, 0].any():
            how, host["choice"].view(np.float64)[...] = DRAWN, choice
        elif choice is not None and backend.device.picks:
            how = GREEDY
        work, replay = self._work(watched is not None, how)
        replay()
        self._now = 0 if backend.in_place else 1 - self._now
        self._cache.keys, self._cache.values = self._sets[self._now]
        backend.device.synchronize()
        self.picked = None if how == LOGITS else self._own
        if watched is not None:
            self.observation = backend.observation(work.seen)
        self._cache.length += active
        return self.logits

    def overwrite(self, slots: Int64) -> None:
        """See `vlkv.backend.base.Steps.overwrite`: one kernel for all layers, prompts and heads where there is one."""
        cache, device = self._cache, self._backend.device
        device.use()
        if self._now not in self._moves:
            self._moves[self._now] = device.mover(*self._sets[self._now])
        move = self._moves[self._now]
        if move is None:
            cache.overwrite(slots)
            return
        move(slots, cache.length - 1)
        cache.length -= slots[:, :, 0] >= 0

    def close(self) -> None:
        """See `vlkv.backend.base.Steps.close`."""
        self._backend.device.use()
        for work, replay in self._steps.values():
            replay.close()
            work.close()
        self._steps.clear()
        self._moves.clear()

    def _work(self, watched: bool, how: str) -> tuple[_Step, Replay]:
        key = (self._now, watched, how)
        if key not in self._steps:
            target = self._sets[0 if self._backend.in_place else 1 - self._now]
            cache = Cache(*self._sets[self._now], self._cache.length, self._cache.store)
            results = self.logits if how == LOGITS else self._own
            work = _Step(self._backend, self._given, cache, target, results, watched, how == DRAWN)
            self._steps[key] = work, self._backend.device.replay(work)
        return self._steps[key]
