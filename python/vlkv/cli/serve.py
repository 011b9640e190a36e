"""`vlkv serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import os
import signal
from typing import Annotated, Any

import typer

from vlkv.cli.console import details, notes, progress
from vlkv.cli.options import Device, EngineFolder, NoVerify, Plugin, Threads, Tuned
from vlkv.cli.serve_ray import Replicas, serve_on_ray
from vlkv.errors import VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.scheduler.allowance import check_plan, lines
from vlkv.scheduler.plan import SLOTS
from vlkv.scheduler.scheduler import QUEUE
from vlkv.serving.listening import listen, url
from vlkv.serving.size import AUTO, parse_memory, parse_size

KEYS = "VLKV_API_KEYS"
LEAST_BODY = 1024
GRACE = 30
"""Seconds that running answers have to finish when the server is stopped."""


def serve(
    engine: EngineFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    model: Annotated[str, typer.Option(help="The model's name.")] = "llava",
    policy: Annotated[str, typer.Option(help="Policy of requests that name none.")] = DEFAULT_POLICY,
    memory: Annotated[
        str, typer.Option(help="Most memory of all caches; auto: half of what is available.")
    ] = AUTO,
    reuse: Annotated[
        str,
        typer.Option(help="Most of it for what was read of pictures and prompts; auto: a quarter, 0: none."),
    ] = AUTO,
    slots: Annotated[int, typer.Option(min=1, help="Lanes: answers that run at once.")] = SLOTS,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt that can be compressed.", show_default="by memory")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(help="Most tokens of a lane in each layer.", show_default="by memory")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Most requests that may wait.")] = QUEUE,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help=f"A key that clients must send; repeatable. {KEYS} holds a comma-separated list."),
    ] = None,
    isolate: Annotated[bool, typer.Option("--isolate", help="Reuse nothing between API keys.")] = False,
    client_requests: Annotated[
        int | None, typer.Option(min=1, help="Most requests at once of an API key.", show_default="no limit")
    ] = None,
    client_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens a minute of an API key.", show_default="no limit")
    ] = None,
    allow_image_urls: Annotated[
        str, typer.Option(metavar="HOSTS", help="Hosts that pictures may be fetched from, comma-separated.")
    ] = "",
    cors: Annotated[str, typer.Option(metavar="ORIGINS", help="Allowed CORS origins.")] = "",
    max_body: Annotated[str, typer.Option(help="The largest request.")] = "64MiB",
    log: Annotated[str, typer.Option(help="Log of requests on standard error: text, json or off.")] = "text",
    traces: Annotated[
        str, typer.Option(metavar="URL", help="OTLP endpoint over HTTP that gets OpenTelemetry traces.")
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which an answer ends.")] = 600.0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve on Ray: several replicas, on one machine or on a cluster.")
    ] = False,
    replicas: Annotated[
        int, typer.Option(min=1, help="Replicas with --ray; with --most-replicas the fewest.")
    ] = 2,
    most_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Most replicas; their number follows the load.", show_default="fixed"),
    ] = None,
    ray_address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A Ray cluster's address; local: this machine alone.")
    ] = "local",
    no_verify: NoVerify = False,
    threads: Threads = 0,
    device: Device = "cpu",
    plugin: Plugin = None,
    tuned: Tuned = None,
) -> None:
    """Serve an engine over HTTP with OpenAI's API."""
    try:
        import uvicorn

        from vlkv.serving.limits import ClientLimits
        from vlkv.serving.openai.app import Settings, make_app
        from vlkv.serving.openai.connections import HEAD_BYTES, Connection
        from vlkv.serving.openai.records import check_format, tracer_to
    except ImportError as error:
        raise VlkvError(f"vlkv serve needs the packages of vlkv[serve]: {error}") from None
    from vlkv.engine import Engine

    largest = parse_size(max_body)
    if largest < LEAST_BODY:
        raise VlkvError(f"max-body {max_body} is under {LEAST_BODY} bytes, which no request fits into")
    keys = [*(api_key or []), *os.environ.get(KEYS, "").split(",")]
    if isolate and not any(keys):
        raise VlkvError(f"--isolate tells API keys apart, and none is given: add --api-key or set {KEYS}")
    if (client_requests or client_tokens) and not any(keys):
        raise VlkvError(
            f"--client-requests and --client-tokens hold for API keys, and none is given: add --api-key or set {KEYS}"
        )
    settings = Settings(
        model=model,
        policy=resolve(policy).name,
        api_keys=tuple(key for key in keys if key),
        image_hosts=_names(allow_image_urls),
        origins=_names(cors),
        max_body=largest,
        timeout=timeout,
        isolate=isolate,
        client=ClientLimits(client_requests, client_tokens),
        traces=traces,
        log=log,
    )
    check_format(log)
    tracer = tracer_to(traces) if traces else None
    given: dict[str, Any] = {"slots": slots, "queue": queue, "memory": parse_memory(memory)}
    given |= {"prompt_tokens": prompt_tokens, "capacity": capacity, "reuse": parse_memory(reuse)}
    if ray:
        if device != "cpu":
            raise VlkvError(f"--ray serves on CPUs, and --device is {device!r}: leave one of them out")
        numbers = Replicas(replicas, most_replicas, threads)
        serve_on_ray(engine, (host, port), ray_address, numbers, given, settings, not no_verify)
        return
    with progress(data=False) as bar:
        bar.step("opening the engine")
        opened = Engine.load(
            engine, verify=not no_verify, threads=threads, device=device, plugin=plugin, tuned=tuned
        )
        scheduler = opened.scheduler(**given)
    try:
        chosen = prompt_tokens is not None or capacity is not None
        check_plan(scheduler.plan, opened.manifest, resolve(policy), chosen)
        listening = listen(host, port)
    except VlkvError:
        scheduler.close(drain=False)
        raise
    for line in lines(scheduler.plan, opened.manifest):
        notes().print(line, soft_wrap=True)
    details(opened.model.backend.notes)
    app = make_app(opened, scheduler, settings, lambda: _close(scheduler), tracer)
    notes().print(f"serving {model} at {url(host, listening.getsockname()[1])}/v1", soft_wrap=True)
    config = uvicorn.Config(
        app,
        http=Connection,
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    # uvicorn raises SIGTERM again after it has shut down in order; that is not a failure
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        scheduler.close(drain=False, timeout=GRACE)


def _close(scheduler: Any) -> None:
    scheduler.close(drain=True, timeout=GRACE)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
