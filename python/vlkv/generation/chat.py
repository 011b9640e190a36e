"""A conversation about pictures: later questions go on from what is in memory.

`compressed` goes on in the compressed cache: what a turn adds is appended, positions keep counting, and what decoding
evicts goes on to be evicted. `reusable` holds the full keys and values: each question's rows score them anew, and its
answer comes from a compressed copy, as it would if the whole conversation were run from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend, Floats
from vlkv.backend.cache import Cache
from vlkv.errors import PolicyError, PromptError
from vlkv.generation.batch import Answer, Request, Stream, decode
from vlkv.generation.prefill import CHUNK, Job, chunk_bounds, cut, embed, new_result, read
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.messages import Turn, next_prompt
from vlkv.inputs.prompt import Prompt
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.policies.decode_eviction import Eviction, room_for
from vlkv.policies.observe import Observer, observed_rows
from vlkv.policies.policy import Policy
from vlkv.storage.manifest import Manifest

Keep = Literal["compressed", "reusable"]
Prepare = Callable[[Question, Prompt | None], Request]


@dataclass
class Memory:
    """The full keys and values of the prompts so far, answers included once they were part of one.

    Attributes:
        embeds: `[S, hidden]`, what was run.
        cache: S tokens; slot n holds token n.
        observer: what was added up of them.
    """

    embeds: Floats
    cache: Cache
    observer: Observer


class Conversation:
    """Made by `Engine.chat`.

    Attributes:
        policy: of all turns.
        budget: share of the prompt's cache that is kept.
        keep: `compressed` or `reusable`.
    """

    def __init__(
        self,
        backend: Backend,
        embedding: TokenEmbedding,
        tokenizer: Tokenizer,
        manifest: Manifest,
        prepare: Prepare,
        policy: Policy,
        budget: float,
        keep: Keep,
    ) -> None:
        if keep not in get_args(Keep):
            raise PolicyError(f"unknown keep {keep!r}; known: {', '.join(get_args(Keep))}")
        self.policy, self.budget, self.keep = policy, budget, keep
        self._turns: list[Turn] = []
        self._running: Generator[tuple[int, str, Result], None, None] | None = None
        self._backend, self._embedding, self._tokenizer, self._manifest = (
            backend,
            embedding,
            tokenizer,
            manifest,
        )
        self._prepare = prepare
        self._prompt: Prompt | None = None
        self._result = Result()
        self._cache: Cache | None = None
        self._eviction: Eviction | None = None
        self._memory: Memory | None = None

    @property
    def turns(self) -> list[Turn]:
        """Questions and answers so far."""
        if not self._turns:
            return []
        last = self._turns[-1]
        return [*self._turns[:-1], Turn(last.text, last.images, self._result.text)]

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """All tokens so far, but for an end token at the last answer's end."""
        if self._prompt is None:
            return np.zeros(0, np.int64)
        return np.concatenate([self._prompt.token_ids, np.array(self._said(), np.int64)])

    def ask(self, prompt: str, images: Sequence[Any] = (), **settings: Any) -> Result:
        """Answers the next question; the arguments are those of `Engine.generate` but for policy and budget."""
        stream = self.stream(prompt, images, **settings)
        for _ in stream:
            pass
        return stream.result

    def stream(self, prompt: str, images: Sequence[Any] = (), **settings: Any) -> Stream:
        """The same, piece by piece. The next question may come before the answer is done; it is then cut there.

        Raises:
            PromptError: a picture in a later turn where `keep` is `compressed`, or what `Engine.generate` refuses.
        """
        question = Question(prompt, images, policy=self.policy, budget=self.budget, **settings)
        if self._prompt is None:
            request, begin = self._prepare(question, None), 0
        else:
            if len(images) and self.keep == "compressed":
                raise PromptError("a new picture in a later turn needs a conversation of keep='reusable'")
            turns = [*self.turns, Turn(prompt, len(images))]
            whole, begin = next_prompt(
                self._prompt, self._said(), turns, self._tokenizer, self._manifest, question.raw
            )
            request = self._prepare(question, whole)
        if self._running is not None:
            self._running.close()
        self._running = self._run(request, begin, Turn(prompt, len(images)))
        return Stream(self._running)

    def _said(self) -> list[int]:
        """The last answer's tokens but for an end token, which is the template's to write."""
        tokens = self._result.token_ids
        return tokens[:-1] if tokens and tokens[-1] in self._manifest.tokens.eos else tokens

    def _run(
        self, request: Request, begin: int, turn: Turn
    ) -> Generator[tuple[int, str, Result], None, None]:
        job = request.job
        result = new_result(job, self._manifest)
        if self.keep == "reusable" or self._cache is None:
            logits = self._read(job, begin, result)
        else:
            logits = self._go_on(job, result)
        self._turns = [*self.turns, turn]
        self._prompt, self._result = job.prompt, result
        answer = Answer(result, request.sampling, self._tokenizer, self._manifest.tokens.eos, job.room)
        yield 0, answer.take(logits), result
        assert self._cache is not None
        yield from decode([answer], self._cache, [self._eviction], self._backend, self._embedding)

    def _read(self, job: Job, begin: int, result: Result) -> Floats:
        """Runs what is new behind the full cache, and cuts a copy of it; the first turn has nothing before it."""
        start = perf_counter()
        policy, length, text = job.policy, len(job.prompt.token_ids), self._manifest.text
        before = self._memory
        old = 0 if before is None else len(before.embeds)
        fresh = job.prompt.image_positions[job.prompt.image_positions >= old] - old
        part = Prompt("", job.prompt.token_ids[old:], fresh, -1)
        embeds = embed(part, job.images, self._backend, self._embedding, self._manifest)
        result.seconds.vision = perf_counter() - start
        rows = observed_rows(policy, length, job.prompt.last_image, begin)
        if before is None:
            whole = policy.keeps_all and self.keep == "compressed"
            cache = Cache.empty(text, length + (job.room if whole else 0), self._backend.store)
            observer = Observer(text, policy, length, rows, self._backend.threads)
        else:
            embeds = np.concatenate([before.embeds, embeds])
            cache = before.cache.grown(length - old)
            if policy.rows == "all":
                observer = before.observer.grown(length, rows)
            else:
                observer = Observer(text, policy, length, rows, self._backend.threads)
                # rows of an earlier turn are run once more, in the slots where they are
                old = min(old, rows.start) if len(rows) else old
            cache.length[:] = old
            before.cache = cache
        logits = read(embeds, old, cache, observer, self._backend, result)
        keep = self.keep == "reusable"
        if keep:
            self._memory = Memory(embeds, cache, observer)
        self._cache, self._eviction = cut(job, cache, observer, self._backend, result, keep)
        return logits

    def _go_on(self, job: Job, result: Result) -> Floats:
        """Runs what is new behind the compressed cache; what decoding evicts makes way for it."""
        assert self._cache is not None
        backend, before, eviction = self._backend, self._result, self._eviction
        done = before.prompt_tokens + len(before.token_ids) - 1
        length = result.prompt_tokens
        cache = self._cache.grown(length - done)
        if eviction is not None:
            eviction.fit([cache.capacity(layer) for layer in range(len(cache.keys))])
        embeds = self._embedding.rows(job.prompt.token_ids)
        slots = np.full((*cache.length.shape, cache.keys[0].shape[1]), -1, np.int64)
        start = perf_counter()
        for first, last in chunk_bounds(length, backend.chunk or CHUNK, done):
            watched = np.arange(last - first if eviction is not None and eviction.watches else 0)
            positions = np.arange(first, last, dtype=np.int64)[np.newaxis]
            held = cache.length[:, 0].copy()
            logits, seen = backend.extend(
                embeds[np.newaxis, first:last], positions, cache, watched[np.newaxis], last == length
            )
            if eviction is not None:
                for number, position in enumerate(range(first, last), 1):
                    eviction.append(held + number, position)
                eviction.observe(seen, cache, 0)
        result.seconds.prefill = perf_counter() - start
        while eviction is not None and eviction.choose(cache.length[:, 0], slots[:, 0]):
            cache.overwrite(slots)
        room = room_for(job.policy, job.budget, length, job.room)
        self._cache = cache = cache.grown(room)
        if eviction is not None:
            eviction.fit([cache.capacity(layer) for layer in range(len(cache.keys))])
        self._describe(result, cache, done)
        ends: Floats = logits[0]
        return ends

    def _describe(self, result: Result, cache: Cache, done: int) -> None:
        """What the result says of a later turn: the slots that hold a token when its question has been read."""
        before = self._result
        result.sparsity = before.sparsity
        result.kept_tokens = cache.length[:, 0].tolist()
        result.cache_bytes = cache.bytes
        if self._eviction is not None:
            held = zip(self._eviction.positions, result.kept_tokens, strict=True)
            result.positions = [np.sort(layer[:, :valid], axis=1) for layer, valid in held]
        elif before.positions is not None:
            new = np.arange(before.prompt_tokens, result.prompt_tokens, dtype=np.int32)
            result.positions = [
                np.concatenate([layer, np.broadcast_to(new, (len(layer), len(new)))], axis=1)
                for layer in before.positions
            ]
