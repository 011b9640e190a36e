"""When an answer ends: a stop token, a stop text, or its length. Text comes out as far as it is certain."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal

from vlkv.inputs.tokenizer import Detokenizer

FinishReason = Literal["stop", "length"]


class StopTexts:
    """Cuts streamed text before the first stop text, and holds back what may be the beginning of one.

    The stop text that is complete first counts, of several that end together the longest; so the result does
    not depend on how the text was cut into pieces. A character takes the same time whatever the number of stop texts
    and their length: they are one automaton (Aho and Corasick 1975), whose state is the longest end of the text that
    begins a stop text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._next, self._depth, self._match = _automaton(stop)
        self._fail = _failures(self._next, self._match)
        self._state = 0
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take a piece; return the text that is certain to stay. After a stop text it is empty."""
        if self.stopped:
            return ""
        text, state = self._held + piece, self._state
        for place, character in enumerate(piece, len(self._held) + 1):
            while state and character not in self._next[state]:
                state = self._fail[state]
            state = self._next[state].get(character, 0)
            if self._match[state]:
                self.stopped, self._held = True, ""
                return text[: place - self._match[state]]
        self._state = state
        sure = len(text) - self._depth[state]
        self._held = text[sure:]
        return text[:sure]

    def finish(self) -> str:
        """Return the held text, when no more comes."""
        held, self._held, self._state = self._held, "", 0
        return held


def _automaton(stop: Sequence[str]) -> tuple[list[dict[str, int]], list[int], list[int]]:
    """The tree of all stop texts: by state what follows, its depth, the length of the stop text that ends in it."""
    following: list[dict[str, int]] = [{}]
    depth, match = [0], [0]
    for text in stop:
        state = 0
        for character in text:
            if character not in following[state]:
                following[state][character] = len(following)
                following.append({})
                depth.append(depth[state] + 1)
                match.append(0)
            state = following[state][character]
        match[state] = len(text)
    return following, depth, match


def _failures(following: list[dict[str, int]], match: list[int]) -> list[int]:
    """By state, the state of its longest end that begins a stop text; `match` learns of stop texts inside others."""
    fail = [0] * len(following)
    queue = deque(following[0].values())
    while queue:
        state = queue.popleft()
        for character, child in following[state].items():
            back = fail[state]
            while back and character not in following[back]:
                back = fail[back]
            fail[child] = following[back].get(character, 0)
            match[child] = match[child] or match[fail[child]]
            queue.append(child)
    return fail


class Stopping:
    """One answer's text and end: tokens go in, certain text comes out.

    Attributes:
        finish_reason: None while the answer goes on; "stop" after a stop token or text, else "length".
        tokens: how many tokens came, the stop token counted.
    """

    def __init__(
        self, detokenizer: Detokenizer, eos: Collection[int], stop: Sequence[str], max_new_tokens: int
    ) -> None:
        self._detokenizer = detokenizer
        self._eos = frozenset(eos)
        self._texts = StopTexts(stop)
        self._limit = max_new_tokens
        self.finish_reason: FinishReason | None = None
        self.tokens = 0

    def push(self, token: int) -> str:
        """Take a token; return the text to show now. The last call returns all that was held back.

        A stop token has no text. Tokens after the end are a `RuntimeError`.
        """
        if self.finish_reason is not None:
            raise RuntimeError("the answer has ended")
        self.tokens += 1
        text = ""
        if token in self._eos:
            self.finish_reason = "stop"
        else:
            text = self._texts.push(self._detokenizer.push(token))
            if self._texts.stopped:
                self.finish_reason = "stop"
                return text
            if self.tokens >= self._limit:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self._texts.push(self._detokenizer.finish())
            if self._texts.stopped:
                self.finish_reason = "stop"
            text += self._texts.finish()
        return text
