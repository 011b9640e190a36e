"""A second question about a picture over HTTP: what was reused is told; with `--isolate` nothing crosses API keys."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from serving.openai.conftest import Served


def ask(client, uri, text, policy="vl-cache"):
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    own = {"policy": policy} | ({"budget": 0.2} if policy == "vl-cache" else {})
    reply = client.chat.completions.create(model="llava", messages=messages, max_tokens=4, extra_body=own)
    return reply.choices[0].message.content, reply.usage


def test_a_second_question_reuses_and_says_so(served, client, rng):
    data = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((336, 336)).save(data, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    before = served.metrics()
    _, first = ask(client, uri, "what is the type?")
    text, second = ask(client, uri, "what is the date?")
    again, third = ask(client, uri, "what is the date?")
    _, fourth = ask(client, uri, "what is the date?", "h2o")
    assert [one.prompt_tokens_details.cached_tokens > 0 for one in (first, second, third, fourth)] == [
        False,
        True,
        True,
        False,
    ]
    assert second.prompt_tokens_details.cached_tokens < second.prompt_tokens
    assert text == again
    after = served.metrics()
    names = ("reuse_hits_total", "reuse_misses_total")
    grown = {name: after[f"vlkv_{name}"] - before[f"vlkv_{name}"] for name in names}
    assert grown == {"reuse_hits_total": 2, "reuse_misses_total": 2}
    assert 0 < after["vlkv_reuse_bytes"] <= after["vlkv_reuse_bytes_limit"] == 8 << 20


def test_api_keys_share_nothing_with_isolate(shipped, tmp_path, uri):
    keys = [part for key in ("one", "two") for part in ("--api-key", key)]
    server = Served(
        shipped,
        tmp_path / "log",
        "--threads",
        "1",
        "--memory",
        "32MiB",
        "--reuse",
        "4MiB",
        "--isolate",
        *keys,
    )
    try:
        cached = []
        for key in ("one", "two", "one", "two"):
            with server.client(key) as client:
                _, usage = ask(client, uri, "what is the type?")
            cached.append(usage.prompt_tokens_details.cached_tokens > 0)
        assert cached == [False, False, True, True]
        assert server.metrics()["vlkv_picture_misses_total"] == 2
        assert server.metrics()["vlkv_reuse_bytes_limit"] == 4 << 20
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--isolate"], "--isolate tells API keys apart"), (["--reuse", "much"], "'much' is not a size")],
)
def test_wrong_settings_are_refused(shipped, vlkv, options, said):
    code, _, error = vlkv("serve", shipped, "--port", 0, *options)
    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
