"""Answers in OpenAI's formats: complete responses and chunks of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from time import time
from typing import Any

from vlkv.generation.logits import TokenLogprob
from vlkv.generation.result import Result

Words = Callable[[int], str]
"""The text of a token."""
Maps = Callable[[Result], list[dict[str, object]]]
"""Maps of an answer's kept patches."""


def finish_reason(result: Result) -> str:
    """OpenAI's finish reason, `stop` or `length`; an answer that ended at its deadline has `length`."""
    return "stop" if result.finish_reason == "stop" else "length"


def usage(results: Sequence[Result], maps: Maps | None = None) -> dict[str, Any]:
    """The tokens of a request's answers; the prompt counts once. `vlkv` describes the first answer's cache.

    `maps` makes the maps of its kept patches, where these are wanted.
    """
    first = results[0]
    answered = sum(len(result.token_ids) for result in results)
    layers = max(1, len(first.kept_tokens))
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": first.prompt_tokens + answered,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "vlkv": {
            "image_tokens": first.image_tokens,
            "pruned_tokens": first.pruned_tokens,
            "policy": first.policy,
            "budget": first.budget,
            "kept_tokens": sum(first.kept_tokens) // layers,
            "cache_bytes": first.cache_bytes,
            "recall_bytes": first.recall_bytes,
            "cache_bytes_full": first.cache_bytes_full,
            **({"kept": maps(first)} if maps is not None else {}),
        },
    }


@dataclass
class Chat:
    """The response formats of `/v1/chat/completions`.

    Args:
        model: the model's name in responses.
        word: returns the text of a token.
        maps: makes the maps of kept patches, if the request asks for them.
    """

    model: str
    word: Words
    maps: Maps | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        choices = []
        for index, result in enumerate(results):
            message = {"role": "assistant", "content": result.text, "refusal": None}
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(result.logprobs),
                    "finish_reason": finish_reason(result),
                }
            )
        return self._head("chat.completion") | {"choices": choices, "usage": usage(results, self.maps)}

    def begin(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """A chunk with text; `tokens` are those since the last chunk."""
        return self._chunk(index, {"content": text}, None, self._logprobs(tokens))

    def end(self, index: int, result: Result, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """The last chunk of a choice."""
        return self._chunk(index, {}, finish_reason(result), self._logprobs(tokens) if tokens else None)

    def used(self, results: Sequence[Result]) -> dict[str, Any]:
        """The chunk of `include_usage`, without choices."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage(results, self.maps)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if tokens is None:
            return None
        content = []
        for one in tokens:
            entry = self._token(one.token_id, one.logprob)
            entry["top_logprobs"] = [self._token(token, value) for token, value in one.top]
            content.append(entry)
        return {"content": content, "refusal": None}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        text = self.word(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


@dataclass
class Completion:
    """The response formats of `/v1/completions`."""

    model: str
    word: Words
    maps: Maps | None = None
    id: str = field(default_factory=lambda: f"cmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        choices = [
            self._choice(index, result.text, finish_reason(result), result.logprobs)
            for index, result in enumerate(results)
        ]
        return self._head() | {"choices": choices, "usage": usage(results, self.maps)}

    def begin(self, index: int) -> dict[str, Any] | None:
        """Completions have no first chunk of their own."""
        return None

    def piece(self, index: int, text: str, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """A chunk with text."""
        return self._head() | {"choices": [self._choice(index, text, None, tokens)]}

    def end(self, index: int, result: Result, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """The last chunk of a choice."""
        return self._head() | {"choices": [self._choice(index, "", finish_reason(result), tokens or None)]}

    def used(self, results: Sequence[Result]) -> dict[str, Any]:
        """The chunk of `include_usage`."""
        return self._head() | {"choices": [], "usage": usage(results, self.maps)}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _choice(
        self, index: int, text: str, finish: str | None, tokens: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        found = None
        if tokens is not None:
            found = {
                "tokens": [self.word(one.token_id) for one in tokens],
                "token_logprobs": [one.logprob for one in tokens],
                "top_logprobs": [{self.word(token): value for token, value in one.top} for one in tokens],
                "text_offset": [],
            }
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}
