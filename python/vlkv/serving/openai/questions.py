"""Converts a request into questions, one for each choice that it requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from vlkv.generation.question import Question
from vlkv.inputs.messages import PICTURE, VIDEO, Message
from vlkv.serving.openai.protocol import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    ChatRequest,
    Common,
    CompletionRequest,
    RequestError,
    TextPart,
    VideoPart,
)
from vlkv.serving.wire import check_images

Read = Callable[[str], Awaitable[bytes]]
SAME = (
    "budget",
    "prune",
    "recall",
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "suppress_tokens",
    "bad_words_ids",
)
"""Fields that a question has by the same name."""
SETTINGS = frozenset({*SAME, "policy", "stop", "seed", "logit_bias", "priority", "max_tokens"})
"""Fields that the engine's own errors name at their beginning."""
TIERS = {"flex": -5, "priority": 5}
"""The priority of each `service_tier`; 0 for the others."""
MAX_TOKENS = 16
"""The default of a completion's `max_tokens`, as in OpenAI's API."""


async def of_chat(request: ChatRequest, read: Read, policy: str) -> list[Question]:
    """The questions of a chat completion, one per choice.

    Args:
        request: the request.
        read: turns a picture's URL into its file.
        policy: the policy if the request names none.

    Raises:
        RequestError: no messages, too many pictures and frames, or a setting that is not supported.
    """
    if not request.messages:
        raise RequestError("messages is empty; give at least one message of role 'user'", param="messages")
    if request.messages[-1].role != "user":
        raise RequestError("the last message's role must be 'user'", param="messages")
    messages, urls, clips = [], [], []
    for message in request.messages:
        parts: list[Any] = []
        for part in [TextPart(text=message.content)] if isinstance(message.content, str) else message.content:
            if isinstance(part, TextPart):
                parts.append(part.text)
            elif isinstance(part, VideoPart):
                parts.append(VIDEO)
                clips.append(part.video)
            else:
                parts.append(PICTURE)
                urls.append(part.image_url.url)
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role, tuple(parts)))
    check_images(len(urls) + sum(map(len, clips)))
    images = tuple([await read(url) for url in urls])
    videos = [[await read(url) for url in frames] for frames in clips]
    settings = _settings(request, policy)
    for name in ("max_tokens", "max_completion_tokens"):
        limit = getattr(request, name)
        if limit is not None:
            settings["max_new_tokens"] = _positive(limit, name)
    if request.logprobs:
        settings["logprobs"] = _top(request.top_logprobs or 0, "top_logprobs")
    elif request.top_logprobs is not None:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    schema = _schema(request)
    if schema is not None:
        settings["json_schema"] = schema
    return _choices(Question("", images, messages=tuple(messages), videos=videos, **settings), request)


def of_completion(request: CompletionRequest, policy: str) -> list[Question]:
    """The questions of a completion, one per prompt and choice; prompts are used without a template."""
    if request.echo:
        raise RequestError("echo is not supported", param="echo", code="unsupported_parameter")
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not 1 <= len(prompts) <= MAX_CHOICES:
        raise RequestError(f"{len(prompts)} prompts; 1 to {MAX_CHOICES} are allowed", param="prompt")
    settings = _settings(request, policy)
    settings["max_new_tokens"] = _positive(
        MAX_TOKENS if request.max_tokens is None else request.max_tokens, "max_tokens"
    )
    if request.logprobs is not None:
        settings["logprobs"] = _top(request.logprobs, "logprobs")
    return [one for prompt in prompts for one in _choices(Question(prompt, raw=True, **settings), request)]


def priority_of(request: Common) -> int:
    """The priority of a request: its own field, or that of its `service_tier`."""
    if request.priority is not None:
        return request.priority
    return TIERS.get(getattr(request, "service_tier", None) or "", 0)


def _settings(request: Common, policy: str) -> dict[str, Any]:
    found: dict[str, Any] = {"policy": policy if request.policy is None else request.policy}
    for name in SAME:
        value = getattr(request, name)
        if value is not None:
            found[name] = value
    if request.seed is not None:
        found["seed"] = request.seed % 2**64
    if request.stop is not None:
        found["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    if request.logit_bias:
        found["logit_bias"] = _biases(request.logit_bias)
    return found


def _biases(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise RequestError("logit_bias has a key that is not a token id", param="logit_bias") from None


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise RequestError(f"{name} {value} is under 1", param=name)
    return value


def _top(value: int, name: str) -> int:
    if not 0 <= value <= MAX_TOP_LOGPROBS:
        raise RequestError(f"{name} {value} is outside 0 to {MAX_TOP_LOGPROBS}", param=name)
    return value


def _schema(request: ChatRequest) -> str | None:
    form = request.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return '{"type": "object"}'
    if form.json_schema is None:
        raise RequestError("response_format of type json_schema needs json_schema", param="response_format")
    return msgspec.json.encode(form.json_schema.schema).decode()


def _choices(question: Question, request: Common) -> list[Question]:
    """The `n` choices of a question; with a seed each choice has a seed of its own, so that they differ."""
    count = 1 if request.n is None else request.n
    if not 1 <= count <= MAX_CHOICES:
        raise RequestError(f"n {count} is outside 1 to {MAX_CHOICES}", param="n")
    if count == 1 or question.seed is None:
        return [question] * count
    return [replace(question, seed=(question.seed + number) % 2**64) for number in range(count)]
