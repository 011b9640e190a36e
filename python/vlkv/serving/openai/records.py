"""Logs and OpenTelemetry traces of requests. They hold ids, times and counts, but never the text of a prompt or answer.

A log record is one line, as text or as JSON. A trace has the spans `request`, `queue`, `decode picture`, `prefill`,
`compress` and `decode`. Its parent is what the request's `traceparent` header names (W3C Trace Context).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from secrets import token_hex
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request

from vlkv.errors import VlkvError
from vlkv.scheduler import Ticket

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

LOG = logging.getLogger("vlkv.serve")
FORMATS = ("text", "json", "off")


class Formatter(logging.Formatter):
    """One line for each record; of an exception its type and where it was raised, without its message.

    Args:
        as_json: JSON objects instead of `name=value` pairs.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": moment,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            fields["error"] = record.exc_info[0].__name__
            fields["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        if self._json:
            return msgspec.json.encode(fields).decode()
        head = [str(fields.pop(name)) for name in ("time", "level", "event")]
        return " ".join([*head, *(f"{name}={value!s}" for name, value in fields.items())])


def check_format(kind: str) -> None:
    """Raises `VlkvError` for an unknown format of the log."""
    if kind not in FORMATS:
        raise VlkvError(f"unknown log format {kind!a:.40}; known: {', '.join(FORMATS)}")


def log_to_stderr(kind: str) -> None:
    """Writes the server's log to standard error in one of `FORMATS`."""
    if kind == "off":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(kind == "json"))
    LOG.handlers[:], LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO)


class Records:
    """Makes the record of each request.

    Args:
        tracer: of OpenTelemetry; None for no traces.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    def begin(self, request: Request, quiet: bool) -> Record:
        """A request that has arrived; `quiet` is for what is polled: it has no span, and its line is for debugging."""
        span = None
        if self._tracer is not None and not quiet:
            from opentelemetry.propagate import extract
            from opentelemetry.trace import SpanKind

            method, path = request.method, request.scope["route"].path
            span = self._tracer.start_span(
                "request",
                extract(dict(request.headers)),
                SpanKind.SERVER,
                {"http.request.method": method, "http.route": path},
            )
        return Record(request, self._tracer, span, logging.DEBUG if quiet else logging.INFO)


class Record:
    """One request: its id, and what is told of it at its end.

    Attributes:
        id: the `x-request-id` of the request, or a new one.
        tickets: its answers.
    """

    def __init__(self, request: Request, tracer: Tracer | None, span: Span | None, level: int) -> None:
        given = request.headers.get("x-request-id", "")[:64]
        self.id = given if given.isprintable() and given else token_hex(8)
        self.tickets: Sequence[Ticket] = ()
        self._method, self._path = request.method, request.url.path
        self._tracer, self._span, self._level, self._start = tracer, span, level, perf_counter()

    def failed(self) -> None:
        """Logs the exception that is being handled."""
        LOG.exception("failed", extra={"fields": {"request": self.id}})

    def end(self, status: int) -> None:
        """Logs the request and ends its spans."""
        fields: dict[str, Any] = {"request": self.id, "method": self._method, "path": self._path}
        fields |= {"status": status, "ms": round((perf_counter() - self._start) * 1e3, 1)}
        fields |= _counts(self.tickets)
        if self._span is not None:
            fields["trace"] = f"{self._span.get_span_context().trace_id:032x}"
            self._trace(self._span, status)
        LOG.log(self._level, "request", extra={"fields": fields})

    async def watch(self, pieces: AsyncIterator[Any], status: int) -> AsyncIterator[Any]:
        """Passes on the pieces of a streamed response, and ends the record behind the last one."""
        try:
            async for piece in pieces:
                yield piece
        finally:
            with suppress(RuntimeError):
                await pieces.aclose()  # type: ignore[attr-defined]
            self.end(status)

    def _trace(self, span: Span, status: int) -> None:
        from opentelemetry.trace import StatusCode

        span.set_attribute("vlkv.request_id", self.id)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        for ticket in self.tickets:
            self._answer(span, ticket)
        span.end()

    def _answer(self, parent: Span, ticket: Ticket) -> None:
        """The spans of one answer, from the times that its ticket has.

        `compress` is as long as scoring and evicting took in all, and stands at the end of prefill.
        """
        from opentelemetry.trace import StatusCode, set_span_in_context

        assert self._tracer is not None
        context, result = set_span_in_context(parent), ticket.result
        offset, now = time() - monotonic(), monotonic()
        read = ticket.read or (ticket.submitted, ticket.submitted)
        started, first, ended = ticket.started, ticket.first_token, ticket.ended or now
        cut = None if first is None else max(started or first, first - result.seconds.compress)
        counts = {"gen_ai.usage.input_tokens": result.prompt_tokens, "vlkv.policy": result.policy}
        counts |= {"vlkv.cached_tokens": result.cached_tokens, "vlkv.vision_seconds": result.seconds.vision}
        kept = {"vlkv.kept_tokens": sum(result.kept_tokens) // max(1, len(result.kept_tokens))}
        spans: list[tuple[str, float | None, float | None, dict[str, Any]]] = [
            (
                "decode picture",
                *(read if ticket.read else (None, None)),
                {"vlkv.pictures": len(ticket.pictures)},
            ),
            ("queue", read[1], started or ended, {}),
            ("prefill", started, cut or ended, counts),
            ("compress", cut, first, kept),
            ("decode", first, ended, {"gen_ai.usage.output_tokens": len(result.token_ids)}),
        ]
        for name, begin, end, attributes in spans:
            if begin is None or end is None:
                continue
            made = self._tracer.start_span(
                name, context, attributes=attributes, start_time=int((begin + offset) * 1e9)
            )
            if ticket.error is not None and end == ended:
                made.set_attribute("error.type", type(ticket.error).__name__)
                made.set_status(StatusCode.ERROR)
            made.end(int((end + offset) * 1e9))


def _counts(tickets: Sequence[Ticket]) -> dict[str, Any]:
    """What the log says of a request's answers."""
    if not tickets:
        return {}
    first = tickets[0]
    found: dict[str, Any] = {
        "prompt_tokens": first.result.prompt_tokens,
        "generated_tokens": sum(len(ticket.result.token_ids) for ticket in tickets),
        "finish": ",".join(ticket.result.finish_reason or "none" for ticket in tickets),
    }
    for name, moment in (("queue_ms", first.started), ("first_token_ms", first.first_token)):
        if moment is not None:
            found[name] = round((moment - first.submitted) * 1e3, 1)
    return found


def tracer_to(endpoint: str) -> Tracer:
    """A tracer that sends spans to an endpoint of OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`.

    Raises:
        VlkvError: the endpoint is no http(s) URL, or the packages are missing.
    """
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise VlkvError(
            f"--traces {endpoint!a:.80} is no http(s) URL; a collector's is such as http://127.0.0.1:4318/v1/traces"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise VlkvError(f"--traces needs the packages of vlkv[otel]: {error}") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "vlkv"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider.get_tracer("vlkv")
