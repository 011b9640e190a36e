"""A prompt that is prefilled once and answered under any number of policies.

Its full keys and values stay in memory, as in a conversation with `keep="reusable"`; each policy gets a compressed
copy. The answers equal those of `Engine.generate_batch` under the same policies, which prefills the prompt for each.
L layers, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.cache import Cache, join
from vlkv.dtypes import Float32
from vlkv.generation.cut import cut
from vlkv.generation.decode import decode, feed
from vlkv.generation.prefill import embed, observing, run_rows
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.policies.auto import taken
from vlkv.policies.observe import Observer, check_fit
from vlkv.policies.policy import Policy, check_budget


@dataclass(frozen=True)
class Variant:
    """A policy and the share of the prompt's cache that it keeps."""

    policy: Policy
    budget: float


class SharedPrompt:
    """A prefilled prompt; `Engine.read` makes one.

    Attributes:
        prompt: the prompt with its token ids.
        tokens: the number of its tokens, S.
    """

    def __init__(self, model: Model, sequence: Sequence) -> None:
        self._model, self._sequence = model, sequence
        self.prompt = sequence.prompt
        self.tokens = len(self.prompt.token_ids)
        self._prompt_tokens = embed(model, self.prompt, sequence.images, sequence.pruner)
        self._slots = len(self._prompt_tokens.positions)
        self._cache = Cache.empty(model.manifest.text, self._slots, model.backend.store)
        self._logits: Float32 | None = None
        self._seen: dict[tuple[int, int, float, str], Observer] = {}

    def answer(self, variants: abc.Sequence[Variant]) -> list[Result]:
        """Answers under each variant; all variants decode together."""
        sequences = [self._fork(variant, self._sequence.max_new_tokens) for variant in variants]
        for sequence in sequences:
            sequence.take(sequence.logits)
        if sequences:
            cache = join([sequence.give_cache() for sequence in sequences])
            for _ in decode(self._model, cache, sequences):
                pass
        return [sequence.result for sequence in sequences]

    def forced(
        self,
        variants: abc.Sequence[Variant],
        tokens: abc.Sequence[int],
        results: list[Result] | None = None,
    ) -> abc.Iterator[Float32]:
        """Yields logits `[len(variants), V]` at the prompt's end and after each of the given tokens.

        There are at most as many `tokens` as positions behind the prompt. The next step overwrites the yielded array.
        `results` receives one result per variant, without an answer: it says what was kept.
        """
        sequences = [self._fork(variant, max(1, len(tokens))) for variant in variants]
        if results is not None:
            results += [sequence.result for sequence in sequences]
        yield np.stack([sequence.logits for sequence in sequences])
        cache = join([sequence.give_cache() for sequence in sequences])
        for logits, _ in feed(self._model, cache, sequences, tokens):
            yield logits

    def _fork(self, variant: Variant, max_new_tokens: int) -> Sequence:
        """A copy of the sequence under the variant, prefilled; the prompt runs only if it has not run before."""
        policy = taken(variant.policy, self.prompt, self._model.manifest, self._model.backend)
        check_fit(policy, self._model.manifest, self._model.backend)
        check_budget(variant.budget, policy)
        sequence = replace(
            self._sequence, policy=policy, budget=variant.budget, max_new_tokens=max_new_tokens
        )
        sequence.begin(self._model)
        sequence.prune_to(self._prompt_tokens.positions)
        observer = self._observer(sequence)
        assert self._logits is not None
        sequence.logits = self._logits
        cut(self._model, sequence, self._cache, observer, keep_source=True)
        return sequence

    def _observer(self, sequence: Sequence) -> Observer:
        """The observer of the policy's observation window; the prompt runs once for each window."""
        policy = sequence.policy
        tokens = self._prompt_tokens
        observer = observing(self._model, policy, tokens, self.prompt)
        rows, seen = observer.rows, len(observer.rows) or observer.probe is not None
        key = (rows.start, rows.stop, policy.threshold, policy.reduce) if seen else (0, 0, 0.0, "sum")
        if key not in self._seen or self._logits is None:
            self._cache.length[:] = 0
            if observer.room:
                self._cache.grow(self._slots + observer.room)
            spent = sequence.result.seconds
            self._logits = run_rows(self._model, tokens, 0, self._cache, observer, spent).copy()
            self._seen[key] = observer
        return self._seen[key]


def positions_or_all(result: Result, heads: int) -> list[NDArray[np.int32]]:
    """The kept prompt positions per layer, `[Hkv, kept]`; all positions if the result has none."""
    if result.positions is not None:
        return result.positions
    every = np.arange(result.prompt_tokens, dtype=np.int32)
    return [np.broadcast_to(every, (heads, len(every))) for _ in result.kept_tokens]
