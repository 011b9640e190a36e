"""The answers that run: a token for each of them a step."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from vlkv.generation.decode import Decoder
from vlkv.model import Model
from vlkv.scheduler.lanes import LaneCache
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.stats import Stats


class Batch:
    """Running answers in the first lanes, without gaps: whoever leaves is replaced by the last.

    A row's logits are the same bits whatever stands beside it, so that an answer does not depend on the others.

    Args:
        lanes: the cache; the batch's rows are its first.
        model: runs the steps.
        stats: counts steps and seconds.

    Attributes:
        running: the answers, each in the lane of its place.
        seconds: of the last step.
    """

    def __init__(self, lanes: LaneCache, model: Model, stats: Stats) -> None:
        self.running: list[Pending] = []
        self._lanes, self._model, self._stats = lanes, model, stats
        self._decoder: Decoder | None = None
        self.seconds = 0.0

    def add(self, one: Pending) -> None:
        """Takes in an answer whose prompt was prefilled in its lane, which is no running answer's."""
        self._settle()
        self._lanes.settle(one.sequence.give_cache(), one.lane)
        place = len(self.running)
        if one.lane != place:
            self._lanes.move(one.lane, place)
        self.running.append(one)

    def remove(self, one: Pending) -> None:
        """Lets an answer go; its lane is free."""
        self._settle()
        place, last = self.running.index(one), len(self.running) - 1
        if place != last:
            self._lanes.move(last, place)
            self.running[place] = self.running[last]
        else:
            self._lanes.release(place)
        self.running.pop()

    def clear(self) -> None:
        """Lets all go."""
        for lane in range(len(self.running)):
            self._lanes.release(lane)
        self.running.clear()
        self._decoder = None

    def step(self) -> Iterator[tuple[Pending, str | None, Exception | None]]:
        """One token for every answer: the new text, or what went wrong with that one."""
        running = list(self.running)
        sequences = [one.sequence for one in running]
        if self._decoder is None:
            self._decoder = Decoder(self._model, self._lanes.first(len(running)), sequences)
        tokens = np.array([sequence.last_token for sequence in sequences], np.int64)
        began = perf_counter()
        logits = self._decoder.step(tokens, np.ones(len(running), np.bool_))
        stepped = perf_counter()
        found: list[tuple[Pending, str | None, Exception | None]] = []
        for one, values in zip(running, logits, strict=True):
            try:
                found.append((one, one.sequence.take(values), None))
            except Exception as error:
                found.append((one, None, error))
        picked = perf_counter()
        self.seconds = picked - began
        self._stats.steps += 1
        self._stats.rows += len(running)
        self._stats.step_seconds += stepped - began
        self._stats.pick_seconds += picked - stepped
        yield from found

    def _settle(self) -> None:
        """Takes the lengths back from the step's view before rows change."""
        if self._decoder is not None:
            self._lanes.settle(self._decoder.cache)
        self._decoder = None
