"""Generation settings that forbid tokens or lower their logits before a token is chosen.

The settings, their order and their arithmetic are those of transformers' logits processors. V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vlkv.dtypes import Float32
from vlkv.storage.manifest import GenerationFacts


class Constraints:
    """The constraints of one answer; tokens of the prompt and of the answer count alike.

    Args:
        facts: the settings.
        prompt: the token ids of the prompt.
        eos: the ids that end an answer.

    Attributes:
        active: whether any setting changes logits.
    """

    def __init__(self, facts: GenerationFacts, prompt: NDArray[np.int64], eos: Sequence[int]) -> None:
        self._facts, self._eos = facts, list(eos)
        self.active = facts != GenerationFacts()
        self._tokens: list[int] = prompt.tolist() if self.active else []
        self._prompt = len(self._tokens)
        self._seen = _Distinct(prompt if self.active else prompt[:0])
        self._suppressed = np.array(facts.suppress_tokens, np.int64)
        self._followers: dict[tuple[int, ...], dict[int, None]] = defaultdict(dict)
        self._words = [word for word in facts.bad_words if list(word) not in [[index] for index in self._eos]]
        size = facts.no_repeat_ngram_size
        for end in range(size, len(self._tokens) + 1 if size else 0):
            self._note(end)

    def push(self, token: int) -> None:
        """Adds a token of the answer."""
        if self.active:
            self._tokens.append(token)
            self._seen.add(token)
            if 0 < self._facts.no_repeat_ngram_size <= len(self._tokens):
                self._note(len(self._tokens))

    def apply(self, logits: Float32) -> Float32:
        """Returns the logits `[V]` under the settings; a copy if any setting is active."""
        if not self.active:
            return logits
        facts, found = self._facts, logits.astype(np.float32)
        if facts.repetition_penalty != 1.0:
            ids = self._seen.ids
            ids = ids[ids < len(found)]
            penalty, old = np.float32(facts.repetition_penalty), found[ids]
            found[ids] = np.where(old < 0, old * penalty, old / penalty)
        banned = [*self._repeating(), *self._bad()]
        new = len(self._tokens) - self._prompt
        if len(self._tokens) < facts.min_length or new < facts.min_new_tokens:
            banned += self._eos
        if new == 0:
            banned += facts.begin_suppress_tokens
        for ids in (np.array(banned, np.int64), self._suppressed):
            found[ids[ids < len(found)]] = -np.inf
        return found

    def _note(self, end: int) -> None:
        """Records which token followed the n-gram that ends before `end`."""
        size = self._facts.no_repeat_ngram_size
        self._followers[tuple(self._tokens[end - size : end - 1])][self._tokens[end - 1]] = None

    def _repeating(self) -> Iterable[int]:
        size = self._facts.no_repeat_ngram_size
        if not size or len(self._tokens) + 1 < size:
            return ()
        return self._followers.get(tuple(self._tokens[len(self._tokens) + 1 - size :]), ())

    def _bad(self) -> list[int]:
        """The last tokens of those bad words whose other tokens are the newest ones."""
        ends = []
        for *before, last in self._words:
            if len(before) <= len(self._tokens) and self._tokens[len(self._tokens) - len(before) :] == before:
                ends.append(last)
        return ends


class _Distinct:
    """Distinct ids, as an array that grows: a step's work is NumPy's, however long the prompt is."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = np.unique(ids)
        self._count = len(self._ids)
        self._known = set(self._ids.tolist())

    @property
    def ids(self) -> NDArray[np.int64]:
        """Those so far."""
        return self._ids[: self._count]

    def add(self, token: int) -> None:
        """Takes one more."""
        if token in self._known:
            return
        self._known.add(token)
        if self._count == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(64, self._count), np.int64)])
        self._ids[self._count] = token
        self._count += 1
