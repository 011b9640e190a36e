"""Answers in OpenAI's formats: complete responses and chunks of a stream."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from time import time
from typing import Any

from vlkv.generation.logits import TokenLogprob
from vlkv.generation.result import Result
from vlkv.inputs.tokenizer import Tokenizer

Words = Callable[[int], tuple[str, bytes]]
"""A token as it is shown, and the bytes that it adds to the text."""
Maps = Callable[[Result], list[dict[str, object]]]
"""Maps of an answer's kept patches."""


def finish_reason(result: Result) -> str:
    """OpenAI's finish reason, `stop` or `length`; an answer that ended at its deadline has `length`."""
    return "stop" if result.finish_reason == "stop" else "length"


def word_of(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token's text and bytes. A part of a character has no text: it is shown by its bytes, as OpenAI's API does."""
    data = tokenizer.token_bytes(token)
    try:
        data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data
    return tokenizer.piece(token), data


def usage(results: Sequence[Result], maps: Maps | None = None, choices: int = 0) -> dict[str, Any]:
    """The tokens of a request's answers. `vlkv` describes the first answer's cache.

    Args:
        results: the answers, those of a prompt one after the other.
        maps: makes the maps of the first answer's kept patches, where these are wanted.
        choices: answers of each prompt, which counts once; 0 if all are of one.
    """
    first, prompts = results[0], results[:: choices or len(results)]
    asked = sum(one.prompt_tokens for one in prompts)
    answered = sum(len(result.token_ids) for result in results)
    layers = max(1, len(first.kept_tokens))
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in prompts)},
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
        word: describes a token.
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
        text, data = self.word(token)
        return {"token": text, "logprob": value, "bytes": list(data) or None}


class Offsets:
    """Where tokens begin in the text of an answer, in characters."""

    def __init__(self) -> None:
        self._characters, self._count = getincrementaldecoder("utf-8")("replace"), 0

    def after(self, token: bytes) -> int:
        """Takes the next token; returns where it begins, or where the character begins that it is a part of."""
        begin = self._count
        self._count += len(self._characters.decode(token))
        try:
            return self._count - len(token.decode())
        except UnicodeDecodeError:
            return begin


@dataclass
class Completion:
    """The response formats of `/v1/completions`.

    Args:
        model: the model's name in responses.
        word: describes a token.
        choices: answers of each prompt.
        maps: makes the maps of kept patches, if the request asks for them.
    """

    model: str
    word: Words
    choices: int = 1
    maps: Maps | None = None
    id: str = field(default_factory=lambda: f"cmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time()))
    _offsets: defaultdict[int, Offsets] = field(default_factory=lambda: defaultdict(Offsets))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        choices = [
            self._choice(index, result.text, finish_reason(result), result.logprobs)
            for index, result in enumerate(results)
        ]
        return self._head() | {"choices": choices, "usage": usage(results, self.maps, self.choices)}

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
        return self._head() | {"choices": [], "usage": usage(results, self.maps, self.choices)}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _choice(
        self, index: int, text: str, finish: str | None, tokens: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        found = None
        if tokens is not None:
            words = [self.word(one.token_id) for one in tokens]
            found = {
                "tokens": [text for text, _ in words],
                "token_logprobs": [one.logprob for one in tokens],
                "top_logprobs": [{self.word(token)[0]: value for token, value in one.top} for one in tokens],
                "text_offset": [self._offsets[index].after(data) for _, data in words],
            }
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}
