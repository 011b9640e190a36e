"""Converts the tensors of a Triton request into a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import PromptError, SamplingError
from vlkv.generation.question import MAX_NEW_TOKENS, Question
from vlkv.generation.sampling import MAX_BIASES, MAX_STOPS, MAX_WORD, MAX_WORDS
from vlkv.serving.wire import check_images, picture

Tensors = Mapping[str, NDArray[Any]]

MAX_CLIENT = 1024
"""Characters of a client's name."""

MOST = {"stop": MAX_STOPS, "suppress_tokens": MAX_BIASES, "bad_words_ids": MAX_WORDS * (MAX_WORD + 1)}
"""Values of a tensor; more are refused before they are looked at."""


def to_question(tensors: Tensors, policy: str, most_bytes: int) -> tuple[Question, bool]:
    """The question of a request, and whether to stream its answer.

    Args:
        tensors: the given inputs by name: numbers and booleans `[1]`, texts as bytes `[1]` or `[N]`,
            `suppress_tokens [N]`, and `bad_words_ids [N]` with a -1 between two words.
        policy: the policy if the request names none.
        most_bytes: the longest possible prompt text; a longer one is refused before tokenisation.

    Raises:
        PromptError, ImageError, SamplingError: a text is not UTF-8, the prompt is too long, or a picture is neither a
            file nor base64.
    """
    prompt = _text(_one(tensors, "prompt", b""), "prompt")
    if len(prompt) > most_bytes:
        raise PromptError(
            f"the prompt has {len(prompt)} characters, a prompt of this model has at most {most_bytes}"
        )
    for name, most in MOST.items():
        if name in tensors and tensors[name].size > most:
            raise SamplingError(f"{name} has {tensors[name].size} values, the limit is {most}")
    images = list(tensors.get("images", np.empty(0)).reshape(-1))
    check_images(len(images))
    given: dict[str, Any] = {
        "policy": _text(_one(tensors, "policy", policy.encode()), "policy"),
        "stop": tuple(_text(stop, "stop") for stop in tensors.get("stop", np.empty(0)).reshape(-1)),
    }
    if "prune" in tensors:
        given["prune"] = _text(_one(tensors, "prune", b""), "prune")
    numbers: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
        ("budget", "budget", float),
        ("recall", "recall", float),
        ("max_tokens", "max_new_tokens", int),
        ("temperature", "temperature", float),
        ("top_k", "top_k", int),
        ("top_p", "top_p", float),
        ("seed", "seed", int),
        ("repetition_penalty", "repetition_penalty", float),
        ("no_repeat_ngram_size", "no_repeat_ngram_size", int),
        ("min_new_tokens", "min_new_tokens", int),
    )
    for name, field, kind in numbers:
        if name in tensors:
            given[field] = kind(_one(tensors, name, None))
    if "suppress_tokens" in tensors:
        given["suppress_tokens"] = tensors["suppress_tokens"].reshape(-1).tolist()
    if "bad_words_ids" in tensors:
        given["bad_words_ids"] = _words(tensors["bad_words_ids"].reshape(-1).tolist())
    question = Question(prompt, [picture(data) for data in images], **given)
    return question, bool(_one(tensors, "stream", False))


def priority_of(tensors: Tensors) -> int:
    """The priority of a request; 0 if it names none."""
    return int(_one(tensors, "priority", 0))


def client_of(parameters: Sequence[tuple[str, Any]], name: str) -> str:
    """The client that a request's parameters name, "" if they name none.

    Triton puts the forwarded headers after the parameters that the request itself has. The last one counts, in any
    case: a header that a proxy sets can't be replaced in the body.

    Raises:
        SamplingError: the client's name is too long, or no text or whole number.
    """
    client = ""
    for key, value in parameters:
        if key.lower() == name.lower():
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise SamplingError(f"{name} {value!a:.40} is not a text")
            client = str(value)
    if len(client) > MAX_CLIENT:
        raise SamplingError(f"{name} has {len(client)} characters, the limit is {MAX_CLIENT}")
    return client


def new_tokens(tensors: Tensors) -> int:
    """The new tokens that a request asks for; 0 if it asks for fewer. Raises `SamplingError` for several numbers."""
    return max(0, int(_one(tensors, "max_tokens", MAX_NEW_TOKENS)))


def _words(tokens: list[int]) -> list[list[int]]:
    """The lists between -1s."""
    words: list[list[int]] = [[]]
    for token in tokens:
        if token == -1:
            words.append([])
        else:
            words[-1].append(token)
    return [word for word in words if word]


def _one(tensors: Tensors, name: str, default: Any) -> Any:
    if name not in tensors:
        return default
    values = tensors[name].reshape(-1)
    if len(values) != 1:
        raise SamplingError(f"{name} has {len(values)} values; it must have one")
    return values[0]


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not UTF-8 text: byte {value[error.start]:#04x} at {error.start}"
        ) from error
