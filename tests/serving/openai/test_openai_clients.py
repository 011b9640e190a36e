"""What tells clients apart over HTTP: limits of each API key, with OpenAI's errors, and priorities."""

from __future__ import annotations

import json

import openai
import pytest

from serving.openai.conftest import Served

ASKED = {"model": "llava", "messages": [{"role": "user", "content": "type?"}]}


@pytest.fixture(scope="module")
def limited(shipped, tmp_path_factory):
    keys = [part for key in ("one", "two", "three") for part in ("--api-key", key)]
    log = tmp_path_factory.mktemp("limited") / "log"
    options = ["--memory", "32MiB", "--threads", "1", "--client-requests", "2", "--client-tokens", "1000"]
    server = Served(shipped, log, *options, *keys)
    yield server
    assert server.stop() == 0, log.read_text()


def test_requests_at_once_of_a_key(limited, long_answer):
    question, _ = long_answer
    asked = {name: question[name] for name in ("temperature", "seed")} | {"prompt": question["prompt"]}
    with limited.client("one") as one, limited.client("two") as two:
        streams = [
            one.completions.create(model="llava", stream=True, max_tokens=400, **asked) for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError) as found:
            one.completions.create(model="llava", max_tokens=1, **asked)
        assert found.value.status_code == 429 and found.value.response.headers["retry-after"] == "1"
        assert found.value.body["type"] == "requests" and found.value.body["code"] == "rate_limit_exceeded"
        assert two.chat.completions.create(**ASKED, max_tokens=1).usage.completion_tokens == 1
        for stream in streams:
            for _ in stream:
                pass
        assert one.completions.create(model="llava", max_tokens=1, **asked).usage.completion_tokens == 1


def test_tokens_a_minute_of_a_key(limited):
    with limited.client("three") as client:
        used = client.chat.completions.create(**ASKED, max_tokens=16).usage.total_tokens
        with pytest.raises(openai.RateLimitError) as found:
            client.chat.completions.create(**ASKED, max_tokens=1000)
        assert found.value.body["type"] == "tokens"
        # used tokens come back at 1000 a minute
        assert 1 <= int(found.value.response.headers["retry-after"]) <= used * 60 / 1000 + 2
        with pytest.raises(
            openai.BadRequestError, match="asks for 1001 new tokens, the limit of one API key is 1000"
        ):
            client.chat.completions.create(**ASKED, max_tokens=1001)
        refused = {"messages": [{"role": "user", "content": " "}]}
        for _ in range(5):  # what is refused has used nothing
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**ASKED | refused, max_tokens=900)
        assert client.chat.completions.create(**ASKED, max_tokens=800).usage


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"priority": 11}, "priority 11 is not a whole number from -10 to 10"),
        ({"priority": 0.5}, "Expected `int"),
        ({"service_tier": "best"}, "Invalid enum value 'best'"),
    ],
)
def test_wrong_priorities_are_refused(client, own, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(**ASKED, extra_body=own)


def test_priorities_reach_the_scheduler(opened, monkeypatch):
    from starlette.testclient import TestClient

    from vlkv.scheduler import Scheduler
    from vlkv.serving.openai.app import Settings, make_app

    given, submit = [], Scheduler.submit
    monkeypatch.setattr(
        Scheduler, "submit", lambda *all, **named: (given.append(named["priority"]), submit(*all, **named))[1]
    )
    with (
        opened.scheduler(memory=32 << 20) as scheduler,
        TestClient(make_app(opened, scheduler, Settings(), lambda: None)) as client,
    ):
        for own in ({}, {"priority": -3}, *({"service_tier": t} for t in ("auto", "flex", "priority"))):
            body = json.dumps(ASKED | own | {"max_tokens": 1})
            assert client.post("/v1/chat/completions", content=body).status_code == 200
        assert client.post("/v1/completions", json={"prompt": "type?", "priority": 2}).status_code == 200
    assert given == [0, -3, 0, -5, 5, 2]


def test_limits_need_keys(shipped, vlkv):
    code, _, error = vlkv("serve", shipped, "--port", 0, "--client-tokens", 5)
    assert code == 2 and "hold for API keys" in error and len(error.strip().splitlines()) == 1
