"""Ray Serve deployments: replicas with one engine each, and an entrance that routes by picture.

Requests with the same picture go to the replica that has seen it. A replica that dies loses its running answers; a
request whose response has not begun is sent to another replica.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from ray import serve
from ray.exceptions import RayActorError, RayError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vlkv.engine import Engine
from vlkv.serving.openai.app import Settings, as_json, event, make_app
from vlkv.serving.openai.protocol import ChatMessage, ImagePart, RequestError
from vlkv.serving.ray.asgi import Headers, call

PICTURES = 256
"""The most pictures per replica that the router remembers."""
TRIES = 3
MARK = b'"url"'


@dataclass(frozen=True)
class Cluster:
    """The description of a cluster.

    Fields:
        engine: the engine directory, by the path that every machine has.
        replicas: the number of replicas; with `most` the smallest number.
        most: the largest number of replicas under autoscaling; None for a fixed number.
        ongoing: the requests per replica that autoscaling aims at.
        cpus: cores per replica; its engine runs as many threads.
        verify: whether replicas check the engine's files against their hashes.
        scheduler: settings of each replica's scheduler.
        settings: settings of each replica's server.
    """

    engine: str
    replicas: int = 2
    most: int | None = None
    ongoing: int = 8
    cpus: float = 1.0
    verify: bool = True
    scheduler: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)


class Replica:
    """An engine and its scheduler, which answer whole HTTP requests."""

    def __init__(self, cluster: Cluster) -> None:
        engine = Engine.load(cluster.engine, verify=cluster.verify, threads=max(1, int(cluster.cpus)))
        self._scheduler = engine.scheduler(**cluster.scheduler)
        close = partial(self._scheduler.close, drain=True, timeout=30)
        self._app = make_app(engine, self._scheduler, cluster.settings, close)

    @serve.multiplexed(max_num_models_per_replica=PICTURES)  # type: ignore[untyped-decorator]
    async def _hold(self, key: str) -> str:
        """Tells Ray's router that this replica has seen the picture."""
        return key

    async def forward(self, method: str, path: str, headers: Headers, body: bytes) -> AsyncIterator[Any]:
        """Yields status and headers, then pieces of the body."""
        key = serve.get_multiplexed_model_id()
        if key:
            await self._hold(key)
        async for found in call(self._app, method, path, headers, body):
            if isinstance(found, tuple):
                status, given = found
                yield status, [*given, (b"x-vlkv-replica", str(os.getpid()).encode())]
            else:
                yield found

    def check_health(self) -> None:
        """Raises if the scheduler has stopped; Ray then replaces the replica."""
        if not self._scheduler.alive:
            raise RuntimeError("the scheduler has stopped")


class Entrance:
    """Accepts HTTP requests and forwards each to a replica."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        self._replicas, self._max_body = replicas, max_body

    async def __call__(self, request: Request) -> Response:
        """Answers one request; if a replica dies before it has sent anything, another one answers."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_body:
                return as_json(
                    RequestError(f"the body has more than {self._max_body} bytes", status=413).body(), 413
                )
        sent = request.method, request.url.path, request.headers.raw, bytes(body)
        handle = self._replicas.options(stream=True, multiplexed_model_id=picture_key(sent[3]))
        failure: BaseException | None = None
        for _ in range(TRIES):
            pieces = handle.forward.remote(*sent)
            try:
                status, headers = await anext(pieces)
                first = await anext(pieces, b"")
            except RayActorError as error:
                failure = error
                continue
            except RayError as error:
                failure = error
                break
            known = {name.decode(): value.decode() for name, value in headers}
            return StreamingResponse(_rest(first, pieces, known), status, known)
        text = f"no replica answered: {type(failure).__name__}"
        return as_json(RequestError(text, status=503, kind="server_error").body(), 503, {"Retry-After": "1"})


async def _rest(first: bytes, pieces: Any, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """Yields the body; if the replica dies in the middle of a stream, the stream ends with an error event."""
    yield first
    try:
        async for piece in pieces:
            yield piece
    except RayActorError:
        if "text/event-stream" not in headers.get("content-type", ""):
            raise
        lost = RequestError("the replica that answered has died", status=500, kind="server_error")
        yield event(lost.body())


class _Messages(msgspec.Struct):
    """The only field of a request that routing needs; the replica parses and checks the whole request."""

    messages: list[ChatMessage]


def picture_key(body: bytes) -> str:
    """A hash of a request's pictures alone; "" without pictures."""
    if MARK not in body:
        return ""
    try:
        messages = msgspec.json.decode(body, type=_Messages).messages
    except (msgspec.MsgspecError, UnicodeError):
        return ""
    contents = [message.content for message in messages if isinstance(message.content, list)]
    urls = [part.image_url.url for parts in contents for part in parts if isinstance(part, ImagePart)]
    found = "\n".join(urls).encode()
    return hashlib.blake2b(found, digest_size=16).hexdigest() if urls else ""


def build(cluster: Cluster) -> serve.Application:
    """Makes the application for `serve.run`."""
    count: dict[str, Any] = {"num_replicas": cluster.replicas}
    if cluster.most is not None:
        count = {
            "autoscaling_config": {
                "min_replicas": cluster.replicas,
                "max_replicas": cluster.most,
                "target_ongoing_requests": cluster.ongoing,
            }
        }
    replica = _deployment(
        Replica,
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": cluster.cpus},
        health_check_period_s=2,
        **count,
    )
    entrance = _deployment(Entrance, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
    bound: serve.Application = entrance.bind(replica.bind(cluster), cluster.settings.max_body)
    return bound


def _deployment(kind: type, **options: Any) -> Any:
    made: Any = serve.deployment(kind)
    return made.options(**options)
