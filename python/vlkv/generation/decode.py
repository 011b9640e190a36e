"""Decoding: single-token steps of a batch; each sequence evicts under its own policy, or not at all.

B sequences, V vocabulary, L layers, Hkv key/value heads.
"""

from __future__ import annotations

from collections import abc
from contextlib import closing
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Choice, Observation, Steps
from vlkv.backend.cache import Cache, HostStore
from vlkv.dtypes import Float32, Int64
from vlkv.generation.points import Point
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence
from vlkv.model import Model

Piece = tuple[int, str, Result]
"""A sequence's number, its new text, and its result so far."""


class Decoder:
    """Single-token steps over one cache.

    Args:
        model: runs the steps.
        cache: the cache of B sequences.
        sequences: the prefilled sequences, in the cache's order.
        careful: whether a sequence (B = 1) that evicts can be taken back to its last whole token, by its `points`.
            Then the caller settles each step once its token is taken.
        steps: the loop over that cache; None makes one. `close` ends it.

    Attributes:
        cache: the cache of the B sequences.
        positions: the position `[B]` of each sequence's next token.
    """

    def __init__(
        self,
        model: Model,
        cache: Cache,
        sequences: abc.Sequence[Sequence],
        steps: Steps | None = None,
        careful: bool = False,
    ) -> None:
        self.cache, self.sequences = cache, list(sequences)
        self.positions: Int64 = np.array([sequence.position for sequence in sequences], np.int64)
        self._embedding = model.embedding
        self._steps = steps or model.backend.steps(cache)
        self._plain = all(one.plain and (self._steps.draws or not one.draws) for one in sequences)
        # bindings hold the array, so it is written and not replaced
        cache.recall[:] = [0 if sequence.recall is None else sequence.recall.id for sequence in sequences]
        evictions = [sequence.eviction for sequence in sequences]
        self._evictions = [(row, eviction) for row, eviction in enumerate(evictions) if eviction is not None]
        self._watched = np.array([eviction is not None and eviction.watches for eviction in evictions])
        self._watches = bool(self._watched.any())
        layers, batch = cache.length.shape
        heads = cache.keys[0].shape[1]
        self._slots = np.full((layers, batch, heads), -1, np.int64)
        self._drops = False
        self._careful = careful and bool(self._evictions)
        if self._careful:
            eviction = self._evictions[0][1]
            self.sequences[0].points = [Point(0, cache.length.copy(), None, eviction)]

    @property
    def observation(self) -> Observation:
        """The observation of the last step that observed any sequence."""
        return self._steps.observation

    def step(
        self,
        tokens: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
        choose: bool = False,
    ) -> Float32:
        """Runs one token `[B]` of each active sequence `[B]`; returns logits `[B, V]`, which the next step overwrites.

        `watched` `[B]` marks sequences to observe in addition to those whose policy observes; see `observation`.
        `choose`: the logits are for `take` alone, so that the backend may choose the tokens where it can do that for
        all sequences.
        """
        logits = self.run(tokens, active, watched, choose)
        self.settle()
        return logits

    def take(self, row: int, logits: Float32) -> str:
        """Chooses a sequence's token by the last step's logits `[B, V]`; returns the text that has become certain."""
        picked = self._steps.picked
        if picked is None:
            return self.sequences[row].take(logits[row])
        return self.sequences[row].accept(int(picked.tokens[row]), float(picked.best[row]))

    def run(
        self,
        tokens: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
        choose: bool = False,
    ) -> Float32:
        """The same as `step`, but for what it evicts: that is chosen, and goes with `settle`."""
        asked = watched
        if self._watches:
            asked = self._watched & active if watched is None else (self._watched & active) | watched
            asked = asked if asked.any() else None
        if self._careful:
            self._evictions = [(0, self.sequences[0].points[-1].eviction.copy())]
        choice = self._choice(active) if choose and self._plain else None
        logits = self._steps.step(self._embedding.rows(tokens), self.positions, active, asked, choice)
        self._drops = False
        for row, eviction in self._evictions:
            self._slots[:, row] = -1
            if active[row]:
                eviction.append(self.cache.length[:, row], int(self.positions[row]))
                if eviction.watches:
                    eviction.observe(self.observation, self.cache, row)
                self._drops |= eviction.choose(self.cache.length[:, row], self._slots[:, row])
        if self._careful:
            self._note()
        self.positions += active
        return logits

    def _choice(self, active: NDArray[np.bool_]) -> Choice:
        """How each sequence's token is chosen; sequences that are not active use up no random number."""
        choice = np.zeros((len(self.sequences), 4))
        for row in np.flatnonzero(active).tolist():
            choice[row] = self.sequences[row].choice()
        return choice

    def _note(self) -> None:
        """Notes where the sequence stands if the token that comes of this step is taken."""
        sequence = self.sequences[0]
        slots = self._slots.copy() if self._drops else None
        before, eviction = sequence.points[-1], self._evictions[0][1]
        sequence.points = [before, Point(before.tokens + 1, self.cache.length.copy(), slots, eviction)]

    def settle(self) -> None:
        """Drops what the last step evicts."""
        if self._drops:
            self._steps.overwrite(self._slots)
        if self._careful:
            sequence = self.sequences[0]
            last = sequence.points[-1]
            sequence.points = [Point(last.tokens, self.cache.length.copy(), None, last.eviction)]
            sequence.eviction = last.eviction

    def close(self) -> None:
        """Gives back what the steps hold; the cache stays."""
        self._steps.close()

    def attention(self, row: int) -> list[Float32]:
        """The attention of a sequence's newest token to the valid slots, per layer `[Hkv, C]`.

        The last step must have observed the sequence.
        """
        found = []
        for layer, length in enumerate(self.cache.length[:, row].tolist()):
            total = np.zeros((1, self.cache.keys[layer].shape[1], length), np.float32)
            self.observation.add(layer, row, total, self.cache, np.array([length - 1], np.int64))
            found.append(total[0])
        return found


def decode(
    model: Model, cache: Cache, sequences: abc.Sequence[Sequence], careful: bool = False
) -> abc.Iterator[Piece]:
    """Decodes sequences that have their first token until all are done; yields after each token of each sequence.

    A row whose answer has ended is no longer computed: the last row takes its place. A device's cache keeps all rows.
    `careful`: see `Decoder`.
    """
    rows, seconds = list(range(len(sequences))), 0.0
    decoder: Decoder | None = None
    try:
        while True:
            active = np.array([not sequences[number].done for number in rows], np.bool_)
            if not active.any():
                return
            if isinstance(cache.store, HostStore) and not active.all():
                if decoder is not None:
                    decoder.close()
                cache, places = cache.compacted(np.flatnonzero(active).tolist())
                rows, decoder = [rows[place] for place in places], None
                active = np.ones(len(rows), np.bool_)
            if decoder is None:
                decoder = Decoder(model, cache, [sequences[number] for number in rows], careful=careful)
            start = perf_counter()
            tokens = np.array([sequences[number].last_token for number in rows], np.int64)
            logits = decoder.run(tokens, active, choose=True)
            pieces = [(rows[n], decoder.take(n, logits)) for n in np.flatnonzero(active).tolist()]
            decoder.settle()
            seconds += perf_counter() - start
            for number, piece in pieces:
                result = sequences[number].result
                result.seconds.decode = seconds
                result.tokens_per_second = (len(result.token_ids) - 1) / seconds
                yield number, piece, result
    finally:
        if decoder is not None:
            decoder.close()


def feed(
    model: Model,
    cache: Cache,
    sequences: abc.Sequence[Sequence],
    tokens: abc.Iterable[int],
    watch: bool = False,
) -> abc.Iterator[tuple[Float32, Decoder]]:
    """Runs given tokens, the same for all sequences; yields logits `[B, V]`, which the next step overwrites.

    `watch` observes each token of each sequence, for `Decoder.attention`.
    """
    active = np.ones(len(sequences), np.bool_)
    with closing(Decoder(model, cache, sequences)) as decoder:
        for token in tokens:
            given = np.full(len(sequences), token, np.int64)
            yield decoder.step(given, active, active if watch else None), decoder
