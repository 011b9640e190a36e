"""Bodies that no client would send, in this process: every one gets a refusal or an answer, none a server's error."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest

from serving.mixture import chat, draw, garbage
from vlkv.errors import VlkvError
from vlkv.serving.openai.app import Settings, make_app
from vlkv.serving.ray.asgi import call
from vlkv.serving.triton.inputs import to_question

BODIES = 250
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -(2**70), 2**63, 3.5, "", "a", "\x00", "\ud800", [], {}, [[]], [None] * 3,
    {"type": "text"},
    {"a": {"b": [1]}}, "data:", "data:image/png;base64,", "http://127.0.0.1/x", "file:///etc/passwd", "é" * 1000,
)  # fmt: skip
NAMES = (
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n",
    "logit_bias", "frequency_penalty", "presence_penalty", "policy", "budget", "kept", "messages",
    "logprobs", "top_logprobs",
    "response_format", "metadata", "max_completion_tokens", "unknown", "prompt", "echo",
)  # fmt: skip


def mutated(rng, value):
    """A value of JSON with one place changed."""
    if isinstance(value, dict) and value and rng.integers(4):
        name = str(rng.choice(list(value)))
        return value | {name: mutated(rng, value[name])}
    if isinstance(value, list) and value and rng.integers(4):
        place = int(rng.integers(len(value)))
        return [*value[:place], mutated(rng, value[place]), *value[place + 1 :]]
    return VALUES[int(rng.integers(len(VALUES)))]


def body(rng):
    """Bytes of a body: of one value changed, or a field too many, or of bytes changed."""
    asked = draw(rng)
    asked.settings["max_new_tokens"] = 2
    given = chat(asked)
    kind = int(rng.integers(4))
    if kind == 0:
        given[str(rng.choice(NAMES))] = VALUES[int(rng.integers(len(VALUES)))]
    elif kind < 3:
        for _ in range(int(rng.integers(1, 4))):
            given = mutated(rng, given)
            if not isinstance(given, dict):
                break
    data = bytearray(json.dumps(given).encode())
    if kind == 3:
        for _ in range(int(rng.integers(1, 6))):
            place = int(rng.integers(len(data)))
            data[place : place + int(rng.integers(3))] = rng.bytes(int(rng.integers(3)))
    return bytes(data)


def test_bodies(opened, rng):
    scheduler = opened.scheduler(slots=4, memory=32 << 20)
    app = make_app(opened, scheduler, Settings(timeout=2.0), lambda: None)

    async def ask(path, data):
        found = [part async for part in call(app, "POST", path, [], data)]
        return found[0][0], b"".join(found[1:])

    async def run():
        seen = {}
        for number in range(BODIES):
            path = "/v1/completions" if number % 5 == 0 else "/v1/chat/completions"
            data = body(rng)
            status, text = await asyncio.wait_for(ask(path, data), 60)
            assert status in {200, 400, 404, 413, 503}, (status, text[:300], data[:2000])
            if status != 200:
                told = json.loads(text)["error"]
                assert told["message"] and "\n" not in told["message"], (told, data[:2000])
            seen[status] = seen.get(status, 0) + 1
        return seen

    seen = asyncio.run(run())
    assert seen[400] > BODIES // 4 and seen[200], seen
    assert scheduler.alive
    stats = scheduler.stats()
    assert scheduler.close(drain=False, timeout=60)
    assert stats.failed == 0
    assert scheduler.stats().pixel_bytes == 0


@pytest.mark.parametrize("trial", range(30))
def test_pictures_in_data_uris(rng, trial):
    from vlkv.serving.openai.pictures import from_data_uri
    from vlkv.serving.wire import picture

    text = bytearray(b"data:image/png;base64," + base64.b64encode(garbage(rng)))
    for _ in range(int(rng.integers(0, 5))):
        text[int(rng.integers(len(text)))] = int(rng.integers(128))
    for read in (lambda: from_data_uri(text.decode()), lambda: picture(bytes(text))):
        try:
            assert isinstance(read(), bytes)
        except VlkvError as error:
            assert "\n" not in str(error)


TEXTS, NUMBERS = ("prompt", "images", "policy", "stop"), ("budget", "temperature", "top_p")
WHOLE = ("max_tokens", "top_k", "seed", "stream")


@pytest.mark.parametrize("trial", range(30))
def test_tensors(rng, trial):
    tensors = {}
    for name in (*TEXTS, *NUMBERS, *WHOLE):
        if not rng.integers(2):
            continue
        count = int(rng.choice([0, 1, 1, 1, 2]))
        if name in TEXTS:
            tensors[name] = np.array([rng.bytes(int(rng.integers(0, 20))) for _ in range(count)], np.object_)
        elif name in NUMBERS:
            tensors[name] = rng.choice([np.nan, np.inf, -1.0, 0.0, 0.5], count)
        else:
            tensors[name] = rng.choice(np.array([-(2**31), -1, 0, 1, 2**31 - 1]), count)
    try:
        question, _ = to_question(tensors, "full", 10_000)
        assert isinstance(question.prompt, str)
    except VlkvError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name, most", [("stop", 64), ("suppress_tokens", 1024), ("bad_words_ids", 256 * 33)])
def test_tensors_of_too_many_values(name, most):
    value = np.array([b"a"], np.object_) if name == "stop" else np.array([1])
    with pytest.raises(VlkvError, match=f"{name} has {most + 1} values, the limit is {most}"):
        to_question({name: np.repeat(value, most + 1)}, "full", 10_000)
