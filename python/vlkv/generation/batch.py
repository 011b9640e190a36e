"""Batched generation: each prompt is prefilled and compressed alone, then all sequences decode together."""

from __future__ import annotations

from collections import abc

from vlkv.backend.cache import join
from vlkv.generation.decode import Piece, decode
from vlkv.generation.prefill import Progress, prefill
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence
from vlkv.model import Model


class Stream:
    """An answer in progress: iterate over its pieces of text; `result` grows with them and is complete at the end."""

    def __init__(self, pieces: abc.Iterator[Piece]) -> None:
        self._pieces = pieces
        self.result = Result()

    def __iter__(self) -> abc.Iterator[str]:
        for _, piece, result in self._pieces:
            self.result = result
            if piece:
                yield piece


def generate(
    model: Model, sequences: abc.Sequence[Sequence], progress: Progress | None = None
) -> abc.Iterator[Piece]:
    """Answers a batch of sequences.

    Yields:
        After each token: the sequence's number, its new text, and its result so far.
    """
    for number, sequence in enumerate(sequences):
        prefill(model, sequence, progress)
        yield number, sequence.take(sequence.logits), sequence.result
    cache = join([sequence.give_cache() for sequence in sequences])
    for sequence in sequences:
        sequence.result.cache_bytes = cache.bytes // len(sequences)
    yield from decode(model, cache, sequences)
