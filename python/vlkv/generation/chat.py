"""A conversation about pictures: later turns reuse the cache of the earlier ones.

`compressed` continues in the compressed cache: a turn appends its tokens, positions keep counting, and eviction during
decoding continues. `reusable` keeps the full keys and values: each question scores them anew and is answered from a
compressed copy, so its answer equals that of the whole conversation run from its beginning.

A turn is taken with its first token, whole or not at all, and its answer up to the last whole token. Whatever
interrupts one, the next question finds the conversation there. Nothing is put back when it happens: a turn works on
copies of what it could spoil, and the next one puts right what it finds (`_settle`).
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np

from vlkv.backend.cache import Cache
from vlkv.dtypes import Int64
from vlkv.errors import PolicyError, PromptError
from vlkv.generation.batch import Stream
from vlkv.generation.chunks import PREFILL_CHUNK, chunk_bounds
from vlkv.generation.cut import cut
from vlkv.generation.decode import Piece, decode
from vlkv.generation.prefill import Tokens, embed, observing, run_rows
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence, prepare, seen_by
from vlkv.inputs.messages import ChatTurn, encoded_from, next_prompt
from vlkv.inputs.prompt import Prompt
from vlkv.model import Model
from vlkv.policies.decode_eviction import slots_for
from vlkv.policies.observe import Observer
from vlkv.policies.policy import Policy

Keep = Literal["compressed", "reusable"]


@dataclass
class FullCache:
    """The full keys and values of the conversation so far, up to the last question.

    Attributes:
        tokens: its S tokens, without pruned ones.
        length: how many tokens it has, with pruned ones.
        cache: slot n holds the n-th of the S tokens.
        observer: the scores that were added up over these tokens.
    """

    tokens: Tokens
    length: int
    cache: Cache
    observer: Observer


@dataclass(frozen=True)
class State:
    """A conversation between two turns.

    Attributes:
        turns: the questions, and the answers to all but the last.
        last: the newest turn.
        full: where `keep` is `reusable`.
    """

    turns: tuple[ChatTurn, ...]
    last: Sequence
    full: FullCache | None


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
        self._running: abc.Generator[Piece, None, None] | None = None
        self._state: State | None = None

    @property
    def turns(self) -> list[ChatTurn]:
        """Questions and answers so far."""
        state = self._state
        if state is None:
            return []
        *earlier, last = state.turns
        return [*earlier, replace(last, answer=state.last.result.text)]

    @property
    def token_ids(self) -> Int64:
        """All tokens so far, but for an end token at the last answer's end, and a stop text that can be taken back."""
        if self._state is None:
            return np.zeros(0, np.int64)
        last = self._state.last
        return np.concatenate([last.prompt.token_ids, np.array(self._said(last)[0], np.int64)])

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
        self._settle()
        last, begin = (None if self._state is None else self._state.last), 0
        policy, budget = self.policy, self.budget
        if last is not None and self.keep != "reusable":
            # eviction continues under the policy and the budget that the first turn began with
            policy, budget = last.policy, last.budget
        question = Question(prompt, images, policy=policy, budget=budget, **settings)
        turn = ChatTurn(prompt, len(question.images), videos=len(question.videos))
        if last is None:
            sequence = prepare(self._model, question, more=self.keep == "compressed")
        else:
            if (turn.images or turn.videos) and self.keep == "compressed":
                raise PromptError("a new picture in a later turn needs a conversation of keep='reusable'")
            model, said = self._model, self._said(last)[0]
            known = sum(layout.frame is None for layout in last.prompt.pictures)
            media = seen_by(model.manifest, question, known)
            turns = [*self.turns, turn]
            whole, begin = next_prompt(
                last.prompt, said, turns, model.tokenizer, model.manifest, question.raw, media
            )
            sequence = prepare(model, question, whole)
        if sequence.policy.recall is not None and self.keep == "compressed":
            raise PolicyError(
                "a conversation recalls evicted tokens with keep='reusable' alone, because later questions read the "
                "cache without them; leave recall out, or set keep"
            )
        if self._running is not None:
            self._running.close()
        self._running = self._run(sequence, begin, turn)
        return Stream(self._running)

    def _settle(self) -> None:
        """Makes the last answer, its text and its cache what its tokens say, wherever it was interrupted."""
        if self._state is None:
            return
        last = self._state.last
        last.restore_text()
        if last.points and last.cache is not None:
            done = len(last.result.token_ids) - 1
            point = next(point for point in last.points if point.tokens == done).settle(last.cache)
            last.points, last.eviction = [point], point.eviction

    def _said(self, last: Sequence) -> tuple[list[int], int]:
        """The last answer's tokens as they go on in the conversation, and how many of them are those generated.

        An end token is the template's to write. A stop text is no part of the answer; where decoding evicts it stays,
        as what made way for it is gone.
        """
        tokens, text = last.result.token_ids, last.result.text
        if last.ended_by_token:
            return tokens[:-1], len(tokens) - 1
        if last.result.finish_reason != "stop" or (self.keep == "compressed" and last.eviction is not None):
            return tokens, len(tokens)
        tokenizer = self._model.tokenizer
        shown = whole = 0
        detokenizer, pieces = tokenizer.detokenizer(), ""
        for number, token in enumerate(tokens, 1):
            piece = detokenizer.push(token)
            pieces += piece
            if not text.startswith(pieces):
                break
            if piece or tokenizer.is_silent(token):
                shown, whole = len(pieces), number
        return [*tokens[:whole], *encoded_from(text, shown, tokenizer)], whole

    def _run(self, sequence: Sequence, begin: int, turn: ChatTurn) -> abc.Generator[Piece, None, None]:
        sequence.open_ended = self.keep == "compressed"
        sequence.begin(self._model)
        state, full = self._state, None
        if self.keep == "reusable" or state is None:
            full = self._prefill(sequence, begin)
        else:
            self._extend(state.last, sequence)
        sequence.images = ()  # later turns need the pictures' features only
        piece = sequence.take(sequence.logits)
        self._state = State((*self.turns, turn), sequence, full)
        del state
        yield 0, piece, sequence.result
        assert sequence.cache is not None
        yield from decode(self._model, sequence.cache, [sequence], careful=self.keep == "compressed")

    def _prefill(self, sequence: Sequence, begin: int) -> FullCache | None:
        """Runs the new tokens behind the full cache, which is empty in the first turn, and compresses a copy of it.

        Slots behind the full cache's tokens are free, so that nothing is lost where this is interrupted.
        """
        start = perf_counter()
        backend, text, prompt = self._model.backend, self._model.manifest.text, sequence.prompt
        policy, length = sequence.policy, len(prompt.token_ids)
        before = None if self._state is None else self._state.full
        done = 0 if before is None else before.length
        fresh = prompt.image_positions[prompt.image_positions >= done] - done
        new = prompt.pictures[len(prompt.pictures) - len(sequence.images) :]
        part = Prompt("", prompt.token_ids[done:], fresh, -1, new)
        tokens = embed(self._model, part, sequence.images, sequence.pruner)
        sequence.result.seconds.vision = perf_counter() - start
        old = 0 if before is None else len(before.tokens.positions)
        if before is not None:
            tokens = before.tokens.with_more(tokens, done)
        sequence.prune_to(tokens.positions)
        slots = len(tokens.positions)
        observer = observing(self._model, policy, tokens, prompt, begin)
        if before is None:
            whole = policy.keeps_all and self.keep == "compressed" and not any(sequence.windows)
            new_tokens = sequence.max_new_tokens if whole else 0
            cache = Cache.empty(text, slots + new_tokens + observer.room, backend.store)
        else:
            cache = before.cache
            cache.length[:] = old
            cache.grow(slots - old + observer.room)
            if policy.rows in ("all", "probe"):
                observer.go_on(before.observer)
            else:
                rows = observer.rows
                # rows of the observation window that lie in an earlier turn are run again, in their slots
                old = min(old, rows.start) if len(rows) else old
            cache.length[:] = old
        sequence.logits = run_rows(self._model, tokens, old, cache, observer, sequence.result.seconds)
        keep = self.keep == "reusable"
        cut(self._model, sequence, cache, observer, keep)
        return FullCache(tokens, length, cache, observer) if keep else None

    def _extend(self, last: Sequence, sequence: Sequence) -> None:
        """Runs the new tokens behind the compressed cache; eviction then brings the cache back to its budget.

        Where something is evicted this works on a copy; else new tokens go to free slots of the cache itself.
        """
        backend, length, cache = self._model.backend, sequence.result.prompt_tokens, last.cache
        assert cache is not None
        windows = sequence.windows
        ran = min(self._said(last)[1], len(last.result.token_ids) - 1)
        done = last.result.prompt_tokens + ran
        eviction = None if last.eviction is None else last.eviction.copy()
        if eviction is None:
            cache.length[:, 0] = np.array(last.result.kept_tokens) + ran
            cache.grow(length - done, windows)
        else:
            cache = cache.copy(length - done, windows)
            eviction.fit([cache.capacity(layer) for layer in range(len(cache.keys))])
        embeds = self._model.embedding.rows(sequence.prompt.token_ids)
        slots = np.full((*cache.length.shape, cache.keys[0].shape[1]), -1, np.int64)
        start = perf_counter()
        # a windowed layer's slots are in no order of position, and its graph masks by slots: one token at a time
        chunk = 1 if any(windows) else PREFILL_CHUNK
        for first, stop in chunk_bounds(length, chunk, done, most=backend.chunk):
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
                if any(windows) and eviction.choose(cache.length[:, 0], slots[:, 0]):
                    cache.overwrite(slots)
        sequence.result.seconds.prefill = perf_counter() - start
        while eviction is not None and eviction.choose(cache.length[:, 0], slots[:, 0]):
            cache.overwrite(slots)
        spare = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        cache.grow(spare, windows)
        sequence.cache, sequence.eviction = cache, eviction
        if eviction is not None:
            eviction.fit([cache.capacity(layer) for layer in range(len(cache.keys))])
        sequence.logits = logits[0]
        self._describe(last.result, sequence, sequence.cache)

    def _describe(self, before: Result, sequence: Sequence, cache: Cache) -> None:
        """Fills in the result of a later turn: the tokens that the cache holds once the question has been run."""
        result = sequence.result
        result.sparsity = before.sparsity
        result.pruned_tokens = before.pruned_tokens
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
