"""The HTTP application: OpenAI's routes over one scheduler."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from vlkv.engine import Engine
from vlkv.errors import EngineError, LimitError, ServerFullError, ServerStoppedError
from vlkv.generation.question import Question
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.scheduler import Scheduler, Ticket
from vlkv.serving.limits import ClientLimits, Clients
from vlkv.serving.maps import kept_maps
from vlkv.serving.openai.answers import Chat, Completion, word_of
from vlkv.serving.openai.connections import Bodies
from vlkv.serving.openai.lifted import read_chat
from vlkv.serving.openai.metrics import Metrics
from vlkv.serving.openai.pictures import Pictures
from vlkv.serving.openai.protocol import Common, CompletionRequest, RequestError, decode
from vlkv.serving.openai.questions import SETTINGS, of_chat, of_completion, priority_of
from vlkv.serving.openai.records import Records, log_to_stderr, tracer_to
from vlkv.serving.wire import ErrorKind, error_kind, error_text

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

PAGE = Path(__file__).parent / "page.html"
MAX_BODY = 64 << 20
DECODERS = 4
"""Threads that decode pictures."""
MOST_WAITING = 64
"""Requests whose pictures may wait for one of them."""


@dataclass(frozen=True)
class Settings:
    """The settings of the server.

    Fields:
        model: the model's name; a request may omit it, and another name is refused.
        policy: the policy of requests that name none.
        api_keys: requests must send one of them; empty leaves the server open.
        image_hosts: the hosts that pictures may be fetched from.
        origins: allowed CORS origins; none by default.
        max_body: the most bytes of a request.
        timeout: seconds after which an answer ends with the tokens that it has.
        isolate: whether requests reuse only what requests of the same API key left.
        client: limits of each API key.
        traces: where OpenTelemetry traces are sent, an endpoint of OTLP over HTTP; "" for none.
        log: the format of the log on standard error, see `vlkv.serving.openai.records.FORMATS`.
    """

    model: str = "llava"
    policy: str = DEFAULT_POLICY
    api_keys: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body: int = MAX_BODY
    timeout: float = 600.0
    isolate: bool = False
    client: ClientLimits = field(default_factory=ClientLimits)
    traces: str = ""
    log: str = "off"


class Service:
    """The state that the routes share.

    Args:
        engine: the engine.
        scheduler: the engine's scheduler.
        settings: see `Settings`.
    """

    def __init__(self, engine: Engine, scheduler: Scheduler, settings: Settings) -> None:
        self.engine, self.scheduler, self.settings = engine, scheduler, settings
        self.metrics = Metrics(scheduler.stats)
        self.word = partial(word_of, engine.model.tokenizer)
        self.pictures = Pictures(settings.image_hosts)
        self.bodies = Bodies(settings.max_body)
        self.started = int(time())
        self._clients = Clients(settings.client)
        self._decoders: CapacityLimiter | None = None

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        async with self.bodies.reading(request) as data:
            asked, lifted = read_chat(data)
            self._check_model(asked)
            read = partial(self.pictures.read, lifted=lifted)
            questions = await of_chat(asked, read, self.settings.policy)
            tickets = await self._submit(request, asked, questions)
        return await self._answer(request, asked, tickets, Chat(self.settings.model, self.word))

    async def completion(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        async with self.bodies.reading(request) as data:
            asked = decode(data, CompletionRequest)
            self._check_model(asked)
            tickets = await self._submit(request, asked, of_completion(asked, self.settings.policy))
        form = Completion(self.settings.model, self.word, asked.n or 1)
        return await self._answer(request, asked, tickets, form)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return as_json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        if request.path_params["name"] != self.settings.model:
            raise self._unknown(request.path_params["name"])
        return as_json(self._model())

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 while the scheduler runs, else 503."""
        alive = self.scheduler.alive
        return as_json({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def numbers(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, request: Request) -> Response:
        """`GET /`: a page with a form; it requests nothing from other servers."""
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
        )
        headers = {"Content-Security-Policy": policy + "connect-src 'self'"}
        return HTMLResponse(PAGE.read_text(), headers=headers)

    def check_key(self, request: Request) -> None:
        """Raises `RequestError` if the server has keys and the request has none of them."""
        if not self.settings.api_keys:
            return
        given = _key(request).encode()
        if not any(hmac.compare_digest(given, one.encode()) for one in self.settings.api_keys):
            raise RequestError(
                "the API key is missing or wrong",
                status=401,
                kind="authentication_error",
                code="invalid_api_key",
            )

    def _check_model(self, asked: Common) -> None:
        if asked.model not in ("", self.settings.model):
            raise self._unknown(asked.model)

    def _unknown(self, name: str) -> RequestError:
        return RequestError(
            f"the model {name!a:.80} does not exist; this server has {self.settings.model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )

    def _model(self) -> dict[str, Any]:
        name = self.settings.model
        return {"id": name, "object": "model", "created": self.started, "owned_by": "vlkv"}

    async def _answer(
        self, request: Request, asked: Common, tickets: list[Ticket], form: Chat | Completion
    ) -> Response:
        if asked.kept and tickets[0].pictures:
            facts = self.engine.manifest
            form.maps = partial(kept_maps, pictures=tickets[0].pictures, manifest=facts)
        if asked.stream:
            include = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            return StreamingResponse(self._stream(tickets, form, include), media_type="text/event-stream")
        ended = asyncio.create_task(_gone(request))
        waits = asyncio.gather(*(_text(ticket) for ticket in tickets))
        try:
            await asyncio.wait((ended, waits), return_when=asyncio.FIRST_COMPLETED)
            if not waits.done():
                raise ClientDisconnect
            await waits
        finally:
            ended.cancel()
            waits.cancel()
            self._end(tickets)
        return as_json(form.whole([ticket.result for ticket in tickets]))

    async def _submit(self, request: Request, asked: Common, questions: Sequence[Question]) -> list[Ticket]:
        """Submits all of a request's questions, or none of them."""
        key = _key(request)
        running = self._clients.begin(key, sum(question.max_new_tokens for question in questions))
        tickets: list[Ticket] = []
        submit = partial(
            self.scheduler.submit,
            deadline=self.settings.timeout,
            owner=key if self.settings.isolate else "",
            priority=priority_of(asked),
        )
        try:
            for question in questions:
                tickets.append(await run_sync(partial(submit, question), limiter=self._limiter(question)))
        except BaseException:
            self._end(tickets)
            raise
        finally:
            running.tickets = tickets
        request.state.record.tickets = tickets
        return tickets

    def _limiter(self, question: Question) -> CapacityLimiter | None:
        """Pictures are decoded in threads of their own, so that a request without any never waits for one."""
        if not question.images and not question.videos:
            return None
        if self._decoders is None:
            self._decoders = CapacityLimiter(DECODERS)
        waiting = self._decoders.statistics().tasks_waiting
        if waiting >= MOST_WAITING:
            raise ServerFullError(
                f"server is full: the pictures of {waiting} requests wait to be decoded; try again later"
            )
        return self._decoders

    async def _stream(
        self, tickets: Sequence[Ticket], form: Chat | Completion, include_usage: bool
    ) -> AsyncIterator[bytes]:
        """Yields events; closing the generator cancels answers that have not ended."""
        pieces: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        sent = [0] * len(tickets)

        def fresh(index: int) -> Any:
            tokens = tickets[index].result.logprobs
            if tokens is None:
                return None
            count = len(tokens)
            found, sent[index] = tokens[sent[index] : count], count
            return found

        def hear(index: int, _: Ticket, piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

        try:
            for index, ticket in enumerate(tickets):
                begun = form.begin(index)
                if begun is not None:
                    yield event(begun)
                ticket.listen(partial(hear, index))
            running = len(tickets)
            while running:
                index, piece = await pieces.get()
                if piece is not None:
                    yield event(form.piece(index, piece, fresh(index)))
                    continue
                running -= 1
                error = tickets[index].error
                if error is not None:
                    yield event(failed(error).body())
                    break
                yield event(form.end(index, tickets[index].result, fresh(index)))
            else:
                if include_usage:
                    yield event(form.used([ticket.result for ticket in tickets]))
            yield b"data: [DONE]\n\n"
        finally:
            self._end(tickets)

    def _end(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.done:
                self.metrics.answered(ticket)
            else:
                ticket.cancel()


def _key(request: Request) -> str:
    """The API key that a request sends; "" for none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def _text(ticket: Ticket) -> None:
    async for _ in ticket:
        pass


async def _gone(request: Request) -> None:
    """Returns when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def event(value: Any) -> bytes:
    """A server-sent event with JSON data."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def failed(error: BaseException) -> RequestError:
    """Converts any error to OpenAI's format; of an internal error only the type is disclosed."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, LimitError):
        status = 400 if error.wait is None else 429
        return RequestError(
            error_text(error), status=status, kind=error.limit, code="rate_limit_exceeded", wait=error.wait
        )
    kind = error_kind(error)
    if kind is ErrorKind.FULL:
        return RequestError(error_text(error), status=503, kind="server_error", code="server_full", wait=1)
    if isinstance(error, ServerStoppedError):
        return RequestError(error_text(error), status=503, kind="server_error", code="server_stopped")
    if kind is ErrorKind.INVALID and not isinstance(error, EngineError):
        text = error_text(error)
        return RequestError(text, param=next((word for word in text.split()[:2] if word in SETTINGS), None))
    return RequestError(f"the server failed: {type(error).__name__}", status=500, kind="server_error")


def make_app(
    engine: Engine,
    scheduler: Scheduler,
    settings: Settings,
    close: Callable[[], object],
    tracer: Tracer | None = None,
) -> Starlette:
    """Makes the application; `close` is called when it ends. Without a `tracer` that of `settings.traces` is used."""
    log_to_stderr(settings.log)
    service = Service(engine, scheduler, settings)
    records = Records(tracer_to(settings.traces) if tracer is None and settings.traces else tracer)

    def route(handler: Callable[[Request], Any], *, guarded: bool = True) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            record = request.state.record = records.begin(request, not guarded)
            try:
                if guarded:
                    service.check_key(request)
                reply: Response = await handler(request)
            except ClientDisconnect:
                reply = Response(status_code=499)
            except Exception as error:
                found = failed(error)
                if found.status == 500:
                    record.failed()
                headers = None if found.wait is None else {"Retry-After": str(found.wait)}
                reply = as_json(found.body(), found.status, headers)
            reply.headers["x-request-id"] = record.id
            service.metrics.request(request.scope["route"].path, reply.status_code)
            if isinstance(reply, StreamingResponse):
                reply.body_iterator = record.watch(aiter(reply.body_iterator), reply.status_code)
            else:
                record.end(reply.status_code)
            return reply

        return answer

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(close)

    async def missing(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        text = "no such path" if status == 404 else str(getattr(error, "detail", error))
        return as_json(RequestError(text, status=status).body(), status)

    routes = [
        Route("/", route(service.page, guarded=False)),
        Route("/health", route(service.health, guarded=False)),
        Route("/metrics", route(service.numbers, guarded=False)),
        Route("/v1/models", route(service.models)),
        Route("/v1/models/{name:path}", route(service.model)),
        Route("/v1/chat/completions", route(service.chat), methods=["POST"]),
        Route("/v1/completions", route(service.completion), methods=["POST"]),
    ]
    cors = Middleware(
        CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"]
    )
    return Starlette(
        routes=routes,
        middleware=[cors] if settings.origins else [],
        lifespan=lifespan,
        exception_handlers={404: missing, 405: missing},
    )
