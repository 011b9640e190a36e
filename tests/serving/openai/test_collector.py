"""Traces as a collector gets them: OTLP over HTTP from `vlkv serve` with the real SDK and exporter."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.openai.conftest import Served

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="the OTLP exporter is not installed: make .venv/tested"
)
service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "what is the type?"
STAGES = {"decode picture", "queue", "prefill", "compress", "decode"}


class Receiver(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP; the server keeps paths, types and bodies."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(service.ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as running:
        running.received = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def values(attributes):
    """Attributes as a mapping."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def test_a_collector_gets_the_spans_of_a_request(shipped, tmp_path, collector, uri, opened, picture):
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    server = Served(shipped, tmp_path / "log", "--memory", "32MiB", "--threads", "1", "--traces", url)
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": SECRET}]
    with server.client() as client:
        reply = client.chat.completions.create(
            model="llava",
            messages=[{"role": "user", "content": content}],
            stream=True,
            extra_headers={"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"},
        )
        text = "".join(choice.delta.content or "" for chunk in reply for choice in chunk.choices)
    assert server.stop() == 0, server.log.read_text()  # what is left is sent at the end
    assert {one[:2] for one in collector.received} == {("/v1/traces", "application/x-protobuf")}
    bodies = [body for _, _, body in collector.received]
    requests = map(service.ExportTraceServiceRequest.FromString, bodies)
    groups = [group for request in requests for group in request.resource_spans]
    assert {values(group.resource.attributes)["service.name"] for group in groups} == {"vlkv"}
    spans = {span.name: span for group in groups for scope in group.scope_spans for span in scope.spans}
    assert set(spans) == {"request", *STAGES}
    root = spans.pop("request")
    assert root.parent_span_id.hex() == SPAN and root.kind == root.SPAN_KIND_SERVER
    assert {span.trace_id.hex() for span in (root, *spans.values())} == {TRACE}
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    told = values(root.attributes)
    assert told["vlkv.request_id"] == "mine" and told["http.response.status_code"] == 200
    for span in spans.values():
        assert root.start_time_unix_nano <= span.end_time_unix_nano + 2_000_000
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano + 2_000_000
    wanted = opened.generate(SECRET, images=[picture])
    assert text == wanted.text
    assert values(spans["prefill"].attributes)["gen_ai.usage.input_tokens"] == wanted.prompt_tokens
    assert values(spans["decode"].attributes)["gen_ai.usage.output_tokens"] == len(wanted.token_ids)

    log = server.log.read_text()
    assert "request=mine method=POST path=/v1/chat/completions status=200" in log and f"trace={TRACE}" in log
    everything = b"".join(bodies) + log.encode()
    assert SECRET.encode() not in everything and uri[:80].encode() not in everything
    strings = [value for span in (root, *spans.values()) for value in values(span.attributes).values()]
    assert not [value for value in strings if isinstance(value, str) and text.strip() in value]


@pytest.mark.parametrize(
    "url", ["collector:4318", "ftp://a/v1/traces", "http://", "http://a:99999/", "http://[a"]
)
def test_an_endpoint_that_is_no_url_is_refused(shipped, vlkv, url):
    code, _, error = vlkv("serve", shipped, "--port", 0, "--traces", url)
    assert code == 2 and "is no http(s) URL" in error and len(error.strip().splitlines()) == 1
