"""Readiness of `vlkv serve` when its scheduler's thread has died: in this process, without a port."""

from __future__ import annotations

import asyncio
import json

import pytest

from vlkv.scheduler.worker import Worker
from vlkv.serving.openai.app import Settings, make_app
from vlkv.serving.ray.asgi import call

BODY = {"messages": [{"role": "user", "content": "type?"}], "max_tokens": 4}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_is_503_and_requests_say_why(opened, monkeypatch):
    scheduler = opened.scheduler(slots=2, memory=32 << 20)
    app = make_app(opened, scheduler, Settings(), lambda: None)

    def ask(method, path, body=None):
        async def run():
            return [part async for part in call(app, method, path, [], json.dumps(body).encode())]

        (status, _), *pieces = asyncio.run(run())
        return status, b"".join(pieces).decode()

    def chat(**fields):
        return ask("POST", "/v1/chat/completions", BODY | fields)

    assert ask("GET", "/health")[0] == 200
    assert chat()[0] == 200

    def death(self):
        raise SystemError("a bug")

    monkeypatch.setattr(Worker, "_step", death)
    for _ in range(2):  # the first kills the thread, the second finds it dead
        status, text = chat()
        assert (status, json.loads(text)["error"]["code"]) == (503, "server_stopped")
        assert "the scheduler has stopped by an error: a bug" in text
    assert ask("GET", "/health") == (503, '{"status":"stopped"}')
    assert "vlkv_alive 0" in ask("GET", "/metrics")[1]
    assert chat(stream=True)[0] == 503
    assert scheduler.close(timeout=60)
