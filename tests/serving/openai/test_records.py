"""Logs and traces of requests: ids, times and counts; no text of prompts and answers."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import pytest

from vlkv.serving.openai.app import Settings, make_app
from vlkv.serving.openai.records import LOG, Formatter

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed: make .venv/tested")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "what is the type?"


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter, provider.get_tracer("test")
    provider.shutdown()


@pytest.fixture
def lines():
    """The log as the JSON formatter writes it."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(Formatter(True).format(record))

    handler = Keep()
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    yield found
    LOG.removeHandler(handler)
    LOG.setLevel(logging.NOTSET)


@pytest.fixture
def client(opened, spans):
    from starlette.testclient import TestClient

    with (
        opened.scheduler(memory=32 << 20) as scheduler,
        TestClient(make_app(opened, scheduler, Settings(), lambda: None, spans[1])) as client,
    ):
        yield client


def body(uri, **settings):
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": SECRET}]
    return {"messages": [{"role": "user", "content": content}]} | settings


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_the_spans_of_its_stages(client, spans, lines, uri, opened, picture, stream):
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
    reply = client.post("/v1/chat/completions", json=body(uri, stream=stream), headers=headers)
    assert reply.status_code == 200 and reply.headers["x-request-id"] == "mine"
    made = {span.name: span for span in spans[0].get_finished_spans()}
    assert set(made) == {"request", "decode picture", "queue", "prefill", "compress", "decode"}
    root = made.pop("request")
    assert f"{root.parent.span_id:016x}" == SPAN and root.attributes["vlkv.request_id"] == "mine"
    assert {f"{span.context.trace_id:032x}" for span in (root, *made.values())} == {TRACE}
    assert {span.parent.span_id for span in made.values()} == {root.context.span_id}
    order = [made[name] for name in ("decode picture", "queue", "prefill", "compress", "decode")]
    for one, after in pairwise(order):
        assert one.start_time <= one.end_time and abs(one.end_time - after.start_time) < 2e6  # 2 ms
    wanted = opened.generate(SECRET, images=[picture])
    assert made["prefill"].attributes["gen_ai.usage.input_tokens"] == wanted.prompt_tokens
    assert made["decode"].attributes["gen_ai.usage.output_tokens"] == len(wanted.token_ids)
    line = json.loads(lines[-1])
    assert (line["request"], line["status"], line["trace"]) == ("mine", 200, TRACE)
    assert line["prompt_tokens"] == wanted.prompt_tokens and line["finish"] == wanted.finish_reason
    assert line["generated_tokens"] == len(wanted.token_ids) and line["first_token_ms"] >= line["queue_ms"]
    told = "".join(lines) + "".join(span.to_json() for span in (root, *made.values()))
    assert SECRET not in told and wanted.text.strip() not in told


def test_what_fails_is_told_without_text(client, spans, lines, monkeypatch):
    from vlkv.scheduler import Scheduler

    def fail(*_, **__):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Scheduler, "submit", fail)
    reply = client.post("/v1/completions", json={"prompt": SECRET})
    assert reply.status_code == 500
    error, line = (json.loads(line) for line in lines)
    assert error["error"] == "RuntimeError" and any("test_records.py" in frame for frame in error["at"])
    assert line["status"] == 500 and line["request"] == error["request"] == reply.headers["x-request-id"]
    (span,) = spans[0].get_finished_spans()
    assert not span.status.is_ok
    assert SECRET not in "".join(lines) + span.to_json() + reply.text


def test_a_request_without_an_id_gets_one(client, lines, spans):
    for path in ("/health", "/metrics"):
        assert client.get(path).headers["x-request-id"]
    assert not lines and not spans[0].get_finished_spans(), "what is polled is not told"
    given = [
        client.get("/v1/models", headers=h).headers["x-request-id"]
        for h in ({}, {}, {"x-request-id": "a\x7f"})
    ]
    assert len(set(given)) == 3 and all(len(one) == 16 for one in given)
    assert [json.loads(line)["request"] for line in lines] == given


def test_lines_of_text(client, lines):
    record = logging.LogRecord("vlkv.serve", logging.INFO, "", 0, "request", (), None)
    record.fields = {"request": "a", "status": 200}
    assert Formatter(False).format(record).endswith("info request request=a status=200")


def test_a_server_logs_to_standard_error(shipped, tmp_path, uri):
    from serving.openai.conftest import Served

    server = Served(shipped, tmp_path / "log", "--memory", "32MiB", "--log", "json", "--threads", "1")
    with server.client() as client:
        client.chat.completions.create(model="llava", **body(uri))
    assert server.stop() == 0
    (line,) = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert line["path"] == "/v1/chat/completions" and line["generated_tokens"] > 0
    assert SECRET not in server.log.read_text()


def test_an_unknown_format_is_refused(shipped, vlkv):
    code, _, error = vlkv("serve", shipped, "--port", 0, "--log", "xml")
    assert code == 2 and "unknown log format 'xml'; known: text, json, off" in error
