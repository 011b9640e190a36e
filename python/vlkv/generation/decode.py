"""Single-token steps of a batch in which each prompt evicts under a policy of its own, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend, Floats, Ints
from vlkv.backend.cache import Cache
from vlkv.policies.decode_eviction import Eviction


class Decoder:
    """Steps over one cache.

    Args:
        backend: runs them.
        cache: of B prompts.
        evictions: what each prompt evicts, None for nothing.
        positions: `[B]`, of each prompt's next token; they keep counting, whatever is evicted.

    Attributes:
        positions: the same, of the next step.
    """

    def __init__(
        self, backend: Backend, cache: Cache, evictions: Sequence[Eviction | None], positions: Ints
    ) -> None:
        self.positions = positions
        self.cache = cache
        self.steps = backend.steps(cache)
        self._evictions = [(row, eviction) for row, eviction in enumerate(evictions) if eviction is not None]
        self._watched = np.array([eviction is not None and eviction.watches for eviction in evictions])
        self._watches = bool(self._watched.any())
        layers, batch = cache.length.shape
        heads = cache.keys[0].shape[1]
        self._slots = np.full((layers, batch, heads), -1, np.int64)

    def step(
        self, embeds: Floats, active: NDArray[np.bool_], watched: NDArray[np.bool_] | None = None
    ) -> Floats:
        """One token `[B, hidden]` of each active prompt `[B]`; logits `[B, V]`, which the next step overwrites.

        `watched` `[B]` are prompts to observe beside those whose policy asks for it: `steps.observation` has them.
        """
        asked = watched
        if self._watches:
            asked = self._watched & active if watched is None else (self._watched & active) | watched
            asked = asked if asked.any() else None
        logits = self.steps.step(embeds, self.positions, active, asked)
        drops = False
        for row, eviction in self._evictions:
            self._slots[:, row] = -1
            if active[row]:
                eviction.append(self.cache.length[:, row], int(self.positions[row]))
                if eviction.watches:
                    eviction.observe(self.steps.observation, self.cache, row)
                drops |= eviction.choose(self.cache.length[:, row], self._slots[:, row])
        if drops:
            self.steps.overwrite(self._slots)
        self.positions += active
        return logits
