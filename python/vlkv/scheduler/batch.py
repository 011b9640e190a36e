"""The running answers: every step decodes one token for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from vlkv.generation.decode import Decoder
from vlkv.model import Model
from vlkv.scheduler.lanes import Lanes
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.stats import Stats


class Batch:
    """Running answers fill the first lanes without gaps: the last answer moves into the lane of one that ends.

    A row's logits are bit for bit the same in every batch, so an answer does not depend on the other answers.

    Args:
        lanes: the cache; the batch uses its first rows.
        model: runs the steps.
        stats: receives the number of steps and the seconds spent.

    Attributes:
        running: the answers; answer n is in lane n.
        seconds: duration of the last step.
    """

    def __init__(self, lanes: Lanes, model: Model, stats: Stats) -> None:
        self.running: list[Pending] = []
        self._lanes, self._model, self._stats = lanes, model, stats
        self._decoder: Decoder | None = None
        self.seconds = 0.0

    def add(self, one: Pending) -> None:
        """Adds an answer whose prompt was prefilled in its lane. No running answer may use that lane."""
        self._settle()
        self._lanes.settle(one.sequence.give_cache(), one.lane)
        place = len(self.running)
        if one.lane != place:
            self._lanes.move(one.lane, place)
        self.running.append(one)

    def remove(self, one: Pending) -> None:
        """Removes an answer and frees its lane."""
        self._settle()
        place, last = self.running.index(one), len(self.running) - 1
        if place != last:
            self._lanes.move(last, place)
            self.running[place] = self.running[last]
        else:
            self._lanes.release(place)
        self.running.pop()
        one.sequence.recall = None

    def clear(self) -> None:
        """Removes all answers and frees their lanes."""
        for lane in range(len(self.running)):
            self._lanes.release(lane)
        for one in self.running:
            one.sequence.recall = None
        self.running.clear()
        self._decoder = None
        self._lanes.reset()

    def step(self) -> Iterator[tuple[Pending, str | None, Exception | None]]:
        """Decodes one token for every answer; yields each answer with its new text or its error."""
        running = list(self.running)
        sequences = [one.sequence for one in running]
        if self._decoder is None:
            cache = self._lanes.first(len(running))
            steps = self._lanes.steps(self._model.backend, cache)
            self._decoder = Decoder(self._model, cache, sequences, steps)
        tokens = np.array([sequence.last_token for sequence in sequences], np.int64)
        began = perf_counter()
        logits = self._decoder.step(tokens, np.ones(len(running), np.bool_), choose=True)
        stepped = perf_counter()
        found: list[tuple[Pending, str | None, Exception | None]] = []
        for row, one in enumerate(running):
            try:
                found.append((one, self._decoder.take(row, logits), None))
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
        """Copies the lengths back from the decoder's view; needed before rows change."""
        if self._decoder is not None:
            self._lanes.settle(self._decoder.cache)
        self._decoder = None
