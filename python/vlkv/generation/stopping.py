"""When an answer ends: a stop token, a stop text, or its length. Text comes out as far as it is certain."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from vlkv.inputs.tokenizer import Detokenizer

FinishReason = Literal["stop", "length"]


class StopTexts:
    """Cuts streamed text before the first stop text, and holds back what may be the beginning of one.

    The stop text that is complete first counts, of several that end together the longest; so the result does
    not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take a piece; return the text that is certain to stay. After a stop text it is empty."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the held text, when no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


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
