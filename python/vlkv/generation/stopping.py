"""The end of an answer: a stop token, a stop text, or its length. Text is streamed as soon as it is certain."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal

from vlkv.inputs.tokenizer import Detokenizer

FinishReason = Literal["stop", "length"]


class StopTexts:
    """Cuts streamed text before the first stop text, and holds back text that may begin one.

    The stop text that is complete first wins; of several that end together, the longest. So the result does not
    depend on the pieces in which the text arrives. The time per character does not depend on the number of stop texts
    or their length: they form one automaton (Aho and Corasick 1975), whose state is the longest suffix of the text
    that is a prefix of a stop text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._next, self._depth, self._match = _automaton(stop)
        self._fail = _failures(self._next, self._match)
        self._state = 0
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Takes a piece; returns the text that is certain to stay. After a stop text that is empty."""
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
        """Returns the text that was held back, at the end of the answer."""
        held, self._held, self._state = self._held, "", 0
        return held


def _automaton(stop: Sequence[str]) -> tuple[list[dict[str, int]], list[int], list[int]]:
    """The trie of all stop texts: per state its successors, depth, and the length of a stop text that ends there."""
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
    """The failure link of each state; adds stop texts that end inside others to `match`."""
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
        finish_reason: None while the answer continues; "stop" after a stop token or stop text, else "length".
        tokens: the number of tokens, including the stop token.
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
        """Takes a token; returns the text to show now. The last call returns all text that was held back.

        A stop token has no text. A token after the end is a `RuntimeError`.
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
