"""Eviction during decoding, for one prompt under its policy.

A step writes the new token behind the valid slots and attends to all of them. Then each layer that exceeds its budget
chooses a slot, the new token's keys and values overwrite it (`Steps.overwrite`), and the length stays. So slots are
not in order of age; this module records the position and score of each slot.

Sources: StreamingLLM (arXiv 2309.17453), H2O (arXiv 2306.14048), Elastic Cache (arXiv 2407.18121). L layers, C slots,
Hkv key/value heads, Hq query heads, D head dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Observation
from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32, Int64
from vlkv.policies.compress import always_kept
from vlkv.policies.policy import Policy

Positions = list[NDArray[np.int32]]


def share(budget: float, tokens: int) -> int:
    """The whole tokens in a share of `tokens`, rounded at the ninth digit, so that 0.29 of 100 is 29."""
    return floor(round(budget * tokens, 9))


def slots_for(policy: Policy, budget: float, prompt_tokens: int, new_tokens: int) -> int:
    """The slots that `new_tokens` of an answer need behind the kept ones: one, if each overwrites an older token."""
    if policy.decode == "append":
        return new_tokens
    growth = 0
    if policy.decode == "fixed_point":
        growth = share(budget, prompt_tokens + new_tokens) - share(budget, prompt_tokens)
    return min(new_tokens, growth + 1)


def evicting(
    policy: Policy,
    budget: float,
    prompt_tokens: int,
    kept: Positions,
    scores: list[Float32],
    spare: int,
    threads: int,
) -> Eviction | None:
    """The eviction of a prompt that was just compressed; None if decoding only appends.

    Args:
        policy: the prompt's policy.
        budget: the share of prompt and answer to keep.
        prompt_tokens: the prompt's length.
        kept: the kept positions per layer, `[Hkv, count]`; slot n holds the n-th.
        scores: the scores per layer, `[1, Hkv, S]`, over the prompt.
        spare: free slots behind the kept ones.
        threads: threads of one operator; 0 for all cores.
    """
    if policy.decode == "append":
        return None
    if policy.decode == "lowest":
        return Lowest(policy, kept, scores, spare, threads)
    return Oldest(policy, budget, prompt_tokens, kept, spare)


def _fitted(array: NDArray[Any], slots: int, fill: float) -> NDArray[Any]:
    """A copy with another number of slots, on the last axis; new ones hold `fill`."""
    result = np.full((*array.shape[:-1], slots), fill, array.dtype)
    both = min(slots, array.shape[-1])
    result[..., :both] = array[..., :both]
    return result


class Eviction:
    """The eviction of one prompt; subclasses choose the slot.

    Attributes:
        watches: whether the attention of decoded tokens must be observed, with `observe`.
        positions: the position of the token in each slot, per layer `[Hkv, C]` int32.
    """

    watches = False

    def __init__(self, kept: Positions, spare: int) -> None:
        self.positions = [np.pad(layer, ((0, 0), (0, spare)), constant_values=-1) for layer in kept]

    def fit(self, capacity: Sequence[int]) -> None:
        """Adapts to other capacities `[L]` of the cache's arrays."""
        self.positions = [
            _fitted(layer, slots, -1) for layer, slots in zip(self.positions, capacity, strict=True)
        ]

    def observe(self, seen: Observation, cache: Cache, row: int, window: int = 1) -> None:
        """Adds the attention of the newest `window` tokens; `row` is the prompt's row in the batch."""

    def append(self, length: Int64, position: int) -> None:
        """Records a token at `position` in slot `length - 1`; `length` `[L]` includes it."""
        for layer, slot in enumerate(length.tolist()):
            self.positions[layer][:, slot - 1] = position

    def choose(self, length: Int64, slots: Int64) -> bool:
        """Chooses the tokens to drop.

        Args:
            length: valid slots `[L]`, including the newest token's.
            slots: `[L, Hkv]`, written: the slot that the token in slot `length - 1` overwrites, -1 for none.

        Returns:
            Whether any layer drops a token. The caller overwrites the slots before the next call.
        """
        raise NotImplementedError

    def _move(self, layer: int, head: int | slice, last: int, slot: int) -> None:
        self.positions[layer][head, slot] = self.positions[layer][head, last]
        self.positions[layer][head, last] = -1


class Oldest(Eviction):
    """Drops the oldest token after a fixed point: after the sinks (`sliding`), or the truncation point (`fixed_point`).

    In a list ordered by age this removes the entry at that index: entries before it never move, entries after it form
    a queue.
    """

    def __init__(
        self, policy: Policy, budget: float, prompt_tokens: int, kept: Positions, spare: int
    ) -> None:
        super().__init__(kept, spare)
        self._share = budget if policy.decode == "fixed_point" else 0.0
        self._tokens = prompt_tokens
        self._first = share(self._share, prompt_tokens)
        self._counts = [layer.shape[1] for layer in kept]
        self._queues = []
        for count in self._counts:
            sinks, _ = always_kept(policy, count, 0)
            point = max(sinks, count - policy.distance) if policy.decode == "fixed_point" else sinks
            self._queues.append(deque(range(point, count)))

    def append(self, length: Int64, position: int) -> None:
        """See `Eviction.append`."""
        super().append(length, position)
        self._tokens += 1
        for queue, slot in zip(self._queues, length.tolist(), strict=True):
            queue.append(slot - 1)

    def choose(self, length: Int64, slots: Int64) -> bool:
        """See `Eviction.choose`."""
        slots[:] = -1
        growth = share(self._share, self._tokens) - self._first
        layers = zip(self._counts, self._queues, length.tolist(), strict=True)
        for layer, (count, queue, valid) in enumerate(layers):
            last = valid - 1
            if last < count + growth:
                continue
            slots[layer] = slot = queue.popleft()
            if slot != last:
                queue[-1 if queue[-1] == last else queue.index(last)] = slot
            self._move(layer, slice(None), last, slot)
        return bool((slots >= 0).any())


class Lowest(Eviction):
    """Drops the token with the lowest sum of attention, over prompt and answer, that is neither a sink nor recent.

    Ties go to the newer token; NaN is lower than every number.

    Attributes:
        scores: the sums per layer, `[1, Hkv, C]` float32.
    """

    watches = True

    def __init__(
        self, policy: Policy, kept: Positions, scores: list[Float32], spare: int, threads: int
    ) -> None:
        super().__init__(kept, spare)
        self._policy, self._threads = policy, threads
        self._counts = [layer.shape[1] for layer in kept]
        self._recent = [always_kept(policy, count, 0)[1] for count in self._counts]
        self.scores = []
        for positions, score in zip(kept, scores, strict=True):
            found = np.take_along_axis(score[0], positions.astype(np.int64), axis=1)
            self.scores.append(np.pad(found, ((0, 0), (0, spare)))[np.newaxis])

    def fit(self, capacity: Sequence[int]) -> None:
        """See `Eviction.fit`."""
        super().fit(capacity)
        self.scores = [_fitted(score, slots, 0.0) for score, slots in zip(self.scores, capacity, strict=True)]

    def observe(self, seen: Observation, cache: Cache, row: int, window: int = 1) -> None:
        """See `Eviction.observe`."""
        for layer, length in enumerate(cache.length[:, row].tolist()):
            total = self.scores[layer][:, :, :length]
            seen.add(layer, row, total, cache, np.arange(length - window, length), threads=self._threads)

    def choose(self, length: Int64, slots: Int64) -> bool:
        """See `Eviction.choose`."""
        slots[:] = -1
        for layer, count in enumerate(self._counts):
            valid = int(length[layer])
            if valid <= count:
                continue
            score = self.scores[layer][0, :, :valid]
            heads: Sequence[int | slice] = range(len(score))
            if not self._policy.per_head:
                heads, score = [slice(None)], score.sum(axis=0, keepdims=True)
            for head, rating in zip(heads, score, strict=True):
                positions = self.positions[layer][0 if isinstance(head, slice) else head, :valid]
                slot = self._lowest(rating, positions, self._recent[layer])
                slots[layer, head] = slot
                self._move(layer, head, valid - 1, slot)
                self.scores[layer][0, head, slot] = self.scores[layer][0, head, valid - 1]
                self.scores[layer][0, head, valid - 1] = 0.0
        return bool((slots >= 0).any())

    def _lowest(self, rating: Float32, positions: NDArray[np.int32], recent: int) -> int:
        stay = (positions > positions.max() - recent) | (positions < self._policy.sinks)
        rated = np.where(stay, np.inf, np.where(np.isnan(rating), -np.inf, rating))
        lowest = np.flatnonzero(rated == rated.min())
        return int(lowest[np.argmax(positions[lowest])])
