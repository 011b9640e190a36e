"""A conversation about pictures: later turns reuse the cache of the earlier ones.

`compressed` continues in the compressed cache: a turn appends its tokens, positions keep counting, and eviction during
decoding continues. `reusable` keeps the full keys and values: each question scores them anew and is answered from a
compressed copy, so its answer equals that of the whole conversation run from its beginning.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np

from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32, Int64
from vlkv.errors import PolicyError, PromptError
from vlkv.generation.batch import Stream
from vlkv.generation.decode import Piece, decode
from vlkv.generation.prefill import PREFILL_CHUNK, chunk_bounds, cut, embed, run_rows
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence, prepare, seen_by
from vlkv.inputs.messages import ChatTurn, next_prompt
from vlkv.inputs.prompt import Prompt
from vlkv.model import Model
from vlkv.policies.decode_eviction import slots_for
from vlkv.policies.observe import Observer, observed_rows
from vlkv.policies.policy import Policy

Keep = Literal["compressed", "reusable"]


@dataclass
class FullCache:
    """The full keys and values of the conversation so far, up to the last question.

    Attributes:
        embeds: the embeddings `[S, hidden]` of its tokens.
        cache: S tokens; slot n holds token n.
        observer: the scores that were added up over these tokens.
    """

    embeds: Float32
    cache: Cache
    observer: Observer


class Conversation:
    """A conversation with one engine; `Engine.chat` makes one.

    Attributes:
        policy: the policy of all turns.
        budget: the share of the prompt's cache to keep; None for the default of each turn's prompt.
        keep: `compressed` or `reusable`.
    """

    def __init__(self, model: Model, policy: Policy, budget: float | None, keep: Keep) -> None:
        if keep not in get_args(Keep):
            raise PolicyError(f"unknown keep {keep!r}; known: {', '.join(get_args(Keep))}")
        self.policy, self.budget, self.keep = policy, budget, keep
        self._model = model
        self._turns: list[ChatTurn] = []
        self._running: abc.Generator[Piece, None, None] | None = None
        self._last: Sequence | None = None
        self._full: FullCache | None = None

    @property
    def turns(self) -> list[ChatTurn]:
        """The questions and answers so far."""
        if self._last is None:
            return []
        last = self._turns[-1]
        return [*self._turns[:-1], replace(last, answer=self._last.result.text)]

    @property
    def token_ids(self) -> Int64:
        """All token ids so far, without an end token of the last answer."""
        if self._last is None:
            return np.zeros(0, np.int64)
        return np.concatenate([self._last.prompt.token_ids, np.array(self._said(self._last), np.int64)])

    def ask(self, prompt: str, images: abc.Sequence[Any] = (), **settings: Any) -> Result:
        """Answers the next question. Takes the arguments of `Engine.generate` except policy and budget."""
        stream = self.stream(prompt, images, **settings)
        for _ in stream:
            pass
        return stream.result

    def stream(self, prompt: str, images: abc.Sequence[Any] = (), **settings: Any) -> Stream:
        """Streams the answer to the next question. Asking again before the answer has ended cuts it there.

        Raises:
            PromptError: a later turn has a picture and `keep` is `compressed`, or `Engine.generate` refuses the prompt.
        """
        last, begin = self._last, 0
        # eviction continues under the budget that the first turn began with
        budget = self.budget if last is None or self.keep == "reusable" else last.budget
        question = Question(prompt, images, policy=self.policy, budget=budget, **settings)
        turn = ChatTurn(prompt, len(question.images), videos=len(question.videos))
        if last is None:
            sequence = prepare(self._model, question)
        else:
            if (turn.images or turn.videos) and self.keep == "compressed":
                raise PromptError("a new picture in a later turn needs a conversation of keep='reusable'")
            model, said = self._model, self._said(last)
            known = sum(layout.frame is None for layout in last.prompt.pictures)
            media = seen_by(model.manifest, question, known)
            turns = [*self.turns, turn]
            whole, begin = next_prompt(
                last.prompt, said, turns, model.tokenizer, model.manifest, question.raw, media
            )
            sequence = prepare(model, question, whole)
        if self._running is not None:
            self._running.close()
        self._running = self._run(sequence, begin, turn)
        return Stream(self._running)

    def _said(self, last: Sequence) -> list[int]:
        """The last answer's tokens without an end token: the chat template writes that."""
        tokens = last.result.token_ids
        return tokens[:-1] if tokens and tokens[-1] in self._model.manifest.tokens.eos else tokens

    def _run(self, sequence: Sequence, begin: int, turn: ChatTurn) -> abc.Generator[Piece, None, None]:
        sequence.begin(self._model)
        if self.keep == "reusable" or self._last is None:
            self._prefill(sequence, begin)
        else:
            self._extend(self._last, sequence)
        sequence.images = ()  # later turns need the pictures' features only
        self._turns = [*self.turns, turn]
        self._last = sequence
        yield 0, sequence.take(sequence.logits), sequence.result
        assert sequence.cache is not None
        yield from decode(self._model, sequence.cache, [sequence])

    def _prefill(self, sequence: Sequence, begin: int) -> None:
        """Runs the new tokens behind the full cache, which is empty in the first turn, and compresses a copy of it."""
        start = perf_counter()
        backend, text, prompt = self._model.backend, self._model.manifest.text, sequence.prompt
        policy, length, before = sequence.policy, len(prompt.token_ids), self._full
        old = 0 if before is None else len(before.embeds)
        fresh = prompt.image_positions[prompt.image_positions >= old] - old
        new = prompt.pictures[len(prompt.pictures) - len(sequence.images) :]
        part = Prompt("", prompt.token_ids[old:], fresh, -1, new)
        embeds = embed(self._model, part, sequence.images)
        sequence.result.seconds.vision = perf_counter() - start
        rows = observed_rows(policy, length, prompt.last_image, begin)
        if before is None:
            whole = policy.keeps_all and self.keep == "compressed"
            new_tokens = sequence.max_new_tokens if whole else 0
            cache = Cache.empty(text, length + new_tokens, backend.store)
            observer = Observer(text, policy, length, rows, backend.threads)
        else:
            embeds = np.concatenate([before.embeds, embeds])
            cache = before.cache.grown(length - old)
            if policy.rows == "all":
                observer = before.observer.grown(length, rows)
            else:
                observer = Observer(text, policy, length, rows, backend.threads)
                # rows of the observation window that lie in an earlier turn are run again, in their slots
                old = min(old, rows.start) if len(rows) else old
            cache.length[:] = old
            before.cache = cache
        sequence.logits = run_rows(self._model, embeds, old, cache, observer, sequence.result.seconds)
        keep = self.keep == "reusable"
        if keep:
            self._full = FullCache(embeds, cache, observer)
        cut(self._model, sequence, cache, observer, keep)

    def _extend(self, last: Sequence, sequence: Sequence) -> None:
        """Runs the new tokens behind the compressed cache; eviction then brings the cache back to its budget."""
        backend, eviction = self._model.backend, last.eviction
        done, length = last.position, sequence.result.prompt_tokens
        cache = last.give_cache().grown(length - done)
        last.cache = cache
        if eviction is not None:
            eviction.fit([cache.capacity(layer) for layer in range(len(cache.keys))])
        embeds = self._model.embedding.rows(sequence.prompt.token_ids)
        slots = np.full((*cache.length.shape, cache.keys[0].shape[1]), -1, np.int64)
        start = perf_counter()
        for first, stop in chunk_bounds(length, PREFILL_CHUNK, done, most=backend.chunk):
            window = stop - first if eviction is not None and eviction.watches else 0
            positions = np.arange(first, stop, dtype=np.int64)[np.newaxis]
            held = cache.length[:, 0].copy()
            logits, seen = backend.extend(
                embeds[np.newaxis, first:stop],
                positions,
                cache,
                np.arange(window)[np.newaxis],
                stop == length,
            )
            if eviction is not None:
                for number, position in enumerate(range(first, stop), 1):
                    eviction.append(held + number, position)
                eviction.observe(seen, cache, 0, window)
        sequence.result.seconds.prefill = perf_counter() - start
        while eviction is not None and eviction.choose(cache.length[:, 0], slots[:, 0]):
            cache.overwrite(slots)
        spare = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        last.cache, sequence.cache, sequence.eviction = None, cache.grown(spare), eviction
        if eviction is not None:
            eviction.fit([sequence.cache.capacity(layer) for layer in range(len(cache.keys))])
        sequence.logits = logits[0]
        self._describe(last.result, sequence, sequence.cache)

    def _describe(self, before: Result, sequence: Sequence, cache: Cache) -> None:
        """Fills in the result of a later turn: the tokens that the cache holds once the question has been run."""
        result = sequence.result
        result.sparsity = before.sparsity
        result.kept_tokens = cache.length[:, 0].tolist()
        result.cache_bytes = cache.bytes
        if sequence.eviction is not None:
            held = zip(sequence.eviction.positions, result.kept_tokens, strict=True)
            result.positions = [np.sort(layer[:, :valid], axis=1) for layer, valid in held]
        elif before.positions is not None:
            new = np.arange(before.prompt_tokens, result.prompt_tokens, dtype=np.int32)
            result.positions = [
                np.concatenate([layer, np.broadcast_to(new, (len(layer), len(new)))], axis=1)
                for layer in before.positions
            ]
