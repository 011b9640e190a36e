"""Eviction during decoding, for one prompt under its policy.

A step writes the new token behind the valid slots and attends to all of them. Then each layer that exceeds its budget
chooses a slot, the new token's keys and values overwrite it (`Steps.overwrite`), and the length stays. So slots are
not in order of age; this module records the position and score of each slot. In a layer whose sliding window
the answer exceeds, the token that leaves the window goes first under any policy; then nothing else has to go.

Sources: StreamingLLM (arXiv 2309.17453), H2O (arXiv 2306.14048), Elastic Cache (arXiv 2407.18121). L layers, C slots,
Hkv key/value heads, Hq query heads, D head dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import copy
from math import floor
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Observation
from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32, Int64
from vlkv.policies.compress import always_kept
from vlkv.policies.policy import Policy
from vlkv.policies.windows import Windows, kept_within

Positions = list[NDArray[np.int32]]
LEAST_HELD = 256
"""Where nothing of a prompt is evicted, budget 1, decoding evicts nothing before a layer holds so many tokens.

A short prompt has that budget where none is given. If it evicted at once, its words would make way for its answer's.
"""


def share(budget: float, tokens: int) -> int:
    """The whole tokens in a share of `tokens`, rounded at the ninth digit, so that 0.29 of 100 is 29."""
    return floor(round(budget * tokens, 9))


def slots_for(policy: Policy, budget: float, prompt_tokens: int, new_tokens: int) -> int:
    """The slots that `new_tokens` of an answer need behind the kept ones: one, if each overwrites an older token."""
    if policy.decode == "append":
        return new_tokens
    growth = most_held(budget, prompt_tokens) - prompt_tokens
    if policy.decode == "fixed_point":
        growth = share(budget, prompt_tokens + new_tokens) - share(budget, prompt_tokens)
    return min(new_tokens, growth + 1)


def most_held(budget: float, kept: int) -> int:
    """Tokens that a layer which kept so many of its prompt holds before decoding evicts."""
    return max(kept, LEAST_HELD) if budget == 1.0 else kept


def evicting(
    policy: Policy,
    budget: float,
    prompt_tokens: int,
    kept: Positions,
    scores: list[Float32],
    capacity: Sequence[int],
    threads: int,
    windows: Windows,
) -> Eviction | None:
    """The eviction of a prompt that was just compressed; None if decoding only appends.

    Args:
        policy: the prompt's policy.
        budget: the share of prompt and answer to keep.
        prompt_tokens: the prompt's length.
        kept: the kept positions per layer, `[Hkv, count]`; slot n holds the n-th.
        scores: the scores per layer, `[1, Hkv, S]`, over the prompt.
        capacity: the slots of each layer, `[L]`.
        threads: threads of one operator; 0 for all cores.
        windows: the sliding windows `[L]` that the answer exceeds, 0 for other layers.
    """
    if policy.decode == "append":
        return Eviction(kept, capacity, windows) if any(windows) else None
    if policy.decode == "lowest":
        return Lowest(policy, budget, kept, scores, capacity, threads, windows)
    return Oldest(policy, budget, prompt_tokens, kept, capacity, windows)


def _fitted(array: NDArray[Any], slots: int, fill: float) -> NDArray[Any]:
    """A copy with another number of slots, on the last axis; new ones hold `fill`."""
    result = np.full((*array.shape[:-1], slots), fill, array.dtype)
    both = min(slots, array.shape[-1])
    result[..., :both] = array[..., :both]
    return result


class Eviction:
    """The eviction of one prompt: tokens that leave a sliding window; subclasses choose the slots of a policy.

    Attributes:
        watches: whether the attention of decoded tokens must be observed, with `observe`.
        positions: the position of the token in each slot, per layer `[Hkv, C]` int32.
    """

    watches = False

    def __init__(self, kept: Positions, capacity: Sequence[int], windows: Windows) -> None:
        self.positions = [_fitted(layer, slots, -1) for layer, slots in zip(kept, capacity, strict=True)]
        self._windows = windows

    def fit(self, capacity: Sequence[int]) -> None:
        """Adapts to other capacities `[L]` of the cache's arrays."""
        self.positions = [
            _fitted(layer, slots, -1) for layer, slots in zip(self.positions, capacity, strict=True)
        ]

    def copy(self) -> Eviction:
        """The same state, to go on from without changing this one."""
        twin = copy(self)
        twin.positions = [layer.copy() for layer in self.positions]
        return twin

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
        slots[:] = -1
        for layer, window in enumerate(self._windows):
            if window:
                self._leave(layer, window, int(length[layer]), slots)
        self._drop(length, slots)
        return bool((slots >= 0).any())

    def _leave(self, layer: int, window: int, valid: int, slots: Int64) -> None:
        """Chooses the token that the next one does not see; heads hold the same ones, and one leaves at a time."""
        positions = self.positions[layer][0, :valid]
        slot = int(positions.argmin())
        if positions[slot] <= positions.max() + 1 - window:
            slots[layer] = slot
            self._left(layer, slot, valid - 1)

    def _left(self, layer: int, slot: int, last: int) -> None:
        """Takes note that a window's token went, and that the one in slot `last` takes its slot."""
        self._move(layer, slice(None), last, slot)

    def _drop(self, length: Int64, slots: Int64) -> None:
        """Chooses what a policy drops, in layers for which no slot was chosen yet; see `choose`."""

    def _move(self, layer: int, head: int | slice, last: int, slot: int) -> None:
        self.positions[layer][head, slot] = self.positions[layer][head, last]
        self.positions[layer][head, last] = -1


class Oldest(Eviction):
    """Drops the oldest token after a fixed point: after the sinks (`sliding`), or the truncation point (`fixed_point`).

    In a list ordered by age this removes the entry at that index: entries before it never move, entries after it form
    a queue.
    """

    def __init__(
        self,
        policy: Policy,
        budget: float,
        prompt_tokens: int,
        kept: Positions,
        capacity: Sequence[int],
        windows: Windows,
    ) -> None:
        super().__init__(kept, capacity, windows)
        self._share = budget if policy.decode == "fixed_point" else 0.0
        self._tokens = prompt_tokens
        self._first = share(self._share, prompt_tokens)
        counts = [layer.shape[1] for layer in kept]
        self._counts = counts
        if policy.decode == "sliding":
            self._counts = [most_held(budget, count) for count in counts]
        self._queues = []
        for count, window in zip(counts, windows, strict=True):
            sinks, _ = always_kept(policy, count, 0, prompt_tokens - kept_within(prompt_tokens, window))
            point = max(sinks, count - policy.distance) if policy.decode == "fixed_point" else sinks
            self._queues.append(deque(range(point, count)))

    def copy(self) -> Oldest:
        """See `Eviction.copy`."""
        twin = cast(Oldest, super().copy())
        twin._queues = [queue.copy() for queue in self._queues]
        return twin

    def append(self, length: Int64, position: int) -> None:
        """See `Eviction.append`."""
        super().append(length, position)
        self._tokens += 1
        for queue, slot in zip(self._queues, length.tolist(), strict=True):
            queue.append(slot - 1)

    def _left(self, layer: int, slot: int, last: int) -> None:
        super()._left(layer, slot, last)
        queue = self._queues[layer]
        if queue and queue[0] == slot:
            queue.popleft()
        elif slot in queue:
            queue.remove(slot)
        if last in queue:
            queue[-1 if queue[-1] == last else queue.index(last)] = slot

    def _drop(self, length: Int64, slots: Int64) -> None:
        growth = share(self._share, self._tokens) - self._first
        layers = zip(self._counts, self._queues, length.tolist(), strict=True)
        for layer, (count, queue, valid) in enumerate(layers):
            last = valid - 1
            if last < count + growth or slots[layer, 0] >= 0 or not queue:
                continue
            slots[layer] = slot = queue.popleft()
            if slot != last:
                queue[-1 if queue[-1] == last else queue.index(last)] = slot
            self._move(layer, slice(None), last, slot)


class Lowest(Eviction):
    """Drops the token with the lowest sum of attention, over prompt and answer, that is neither a sink nor recent.

    Ties go to the newer token; NaN is lower than every number.

    Attributes:
        scores: the sums per layer, `[1, Hkv, C]` float32.
    """

    watches = True

    def __init__(
        self,
        policy: Policy,
        budget: float,
        kept: Positions,
        scores: list[Float32],
        capacity: Sequence[int],
        threads: int,
        windows: Windows,
    ) -> None:
        super().__init__(kept, capacity, windows)
        self._policy, self._threads = policy, threads
        self._counts = [most_held(budget, layer.shape[1]) for layer in kept]
        self._recent = [always_kept(policy, count, 0)[1] for count in self._counts]
        self.scores = []
        for positions, score, held in zip(kept, scores, capacity, strict=True):
            found = np.take_along_axis(score[0], positions.astype(np.int64), axis=1)
            self.scores.append(_fitted(found, held, 0.0)[np.newaxis])

    def copy(self) -> Lowest:
        """See `Eviction.copy`."""
        twin = cast(Lowest, super().copy())
        twin.scores = [score.copy() for score in self.scores]
        return twin

    def fit(self, capacity: Sequence[int]) -> None:
        """See `Eviction.fit`."""
        super().fit(capacity)
        self.scores = [_fitted(score, slots, 0.0) for score, slots in zip(self.scores, capacity, strict=True)]

    def observe(self, seen: Observation, cache: Cache, row: int, window: int = 1) -> None:
        """See `Eviction.observe`."""
        for layer, length in enumerate(cache.length[:, row].tolist()):
            total = self.scores[layer][:, :, :length]
            seen.add(layer, row, total, cache, np.arange(length - window, length), threads=self._threads)

    def _left(self, layer: int, slot: int, last: int) -> None:
        super()._left(layer, slot, last)
        self.scores[layer][0, :, slot] = self.scores[layer][0, :, last]
        self.scores[layer][0, :, last] = 0.0

    def _drop(self, length: Int64, slots: Int64) -> None:
        for layer, count in enumerate(self._counts):
            valid = int(length[layer])
            if valid <= count or slots[layer, 0] >= 0:
                continue
            score = self.scores[layer][0, :, :valid]
            heads: Sequence[int | slice] = range(len(score))
            if not self._policy.per_head or self._windows[layer]:
                heads, score = [slice(None)], score.sum(axis=0, keepdims=True)
            for head, rating in zip(heads, score, strict=True):
                positions = self.positions[layer][0 if isinstance(head, slice) else head, :valid]
                slot = self._lowest(rating, positions, self._recent[layer])
                slots[layer, head] = slot
                self._move(layer, head, valid - 1, slot)
                self.scores[layer][0, head, slot] = self.scores[layer][0, head, valid - 1]
                self.scores[layer][0, head, valid - 1] = 0.0

    def _lowest(self, rating: Float32, positions: NDArray[np.int32], recent: int) -> int:
        stay = (positions > positions.max() - recent) | (positions < self._policy.sinks)
        rated = np.where(stay, np.inf, np.where(np.isnan(rating), -np.inf, rating))
        lowest = np.flatnonzero(rated == rated.min())
        return int(lowest[np.argmax(positions[lowest])])
