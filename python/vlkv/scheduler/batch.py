"""The answers that run: a token for each of them a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from vlkv.backend.base import Backend
from vlkv.generation.batch import Answer
from vlkv.generation.decode import Decoder
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.policies.decode_eviction import Eviction
from vlkv.scheduler.lanes import SlotCache
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket


@dataclass
class Row:
    """A running answer; its place in the batch is its slot."""

    ticket: Ticket
    answer: Answer
    eviction: Eviction | None


class Batch:
    """Running answers in the first slots, without gaps: whoever leaves is replaced by the last.

    A row's logits are the same bits whatever stands beside it, so that an answer does not depend on the others.

    Args:
        slots: the cache; the batch's rows are its first.
        backend: runs the steps.
        embedding: the token embeddings.
        stats: is told of steps and seconds.
    """

    def __init__(self, slots: SlotCache, backend: Backend, embedding: TokenEmbedding, stats: Stats) -> None:
        self.rows: list[Row] = []
        self._slots, self._backend, self._embedding, self._stats = slots, backend, embedding, stats
        self._decoder: Decoder | None = None

    def add(self, row: Row, slot: int) -> None:
        """Takes in an answer whose tokens lie in `slot`, which is no running answer's."""
        self._settle()
        place = len(self.rows)
        if slot != place:
            self._slots.move(slot, place)
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """Lets an answer go; its slot is free."""
        self._settle()
        place, last = self.rows.index(row), len(self.rows) - 1
        if place != last:
            self._slots.move(last, place)
            self.rows[place] = self.rows[last]
        self.rows.pop()

    def clear(self) -> None:
        """Lets all go."""
        self.rows.clear()
        self._decoder = None

    def step(self) -> Iterator[tuple[Row, str | None, Exception | None]]:
        """One token for every answer: the new text, or what went wrong with that one."""
        rows = list(self.rows)
        if self._decoder is None:
            results = [row.answer.result for row in rows]
            positions = np.array([r.prompt_tokens + len(r.token_ids) - 1 for r in results], np.int64)
            evictions = [row.eviction for row in rows]
            self._decoder = Decoder(self._backend, self._slots.first(len(rows)), evictions, positions)
        tokens = np.array([row.answer.last_token for row in rows], np.int64)
        embeds, active = self._embedding.rows(tokens), np.ones(len(rows), np.bool_)
        began = perf_counter()
        logits = self._decoder.step(embeds, active)
        stepped = perf_counter()
        found: list[tuple[Row, str | None, Exception | None]] = []
        for row, values in zip(rows, logits, strict=True):
            try:
                found.append((row, row.answer.take(values), None))
            except Exception as error:
                found.append((row, None, error))
        picked = perf_counter()
        self._stats.steps += 1
        self._stats.rows += len(rows)
        self._stats.step_seconds += stepped - began
        self._stats.pick_seconds += picked - stepped
        yield from found

    def _settle(self) -> None:
        """Takes the lengths back from the step's view before rows change."""
        if self._decoder is not None:
            self._slots.settle(self._decoder.cache)
        self._decoder = None
