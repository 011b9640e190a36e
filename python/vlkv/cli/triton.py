"""`vlkv triton`: writes an engine's model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes
from vlkv.cli.paths import path
from vlkv.errors import VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.scheduler.allowance import lines
from vlkv.scheduler.plan import SLOTS
from vlkv.scheduler.scheduler import QUEUE
from vlkv.scheduler.worker import SCHEDULED_CHUNK
from vlkv.serving.size import AUTO
from vlkv.serving.triton.repository import CLIENT, Settings, write_repository
from vlkv.storage import manifest as manifests


def triton(
    engine: Annotated[
        Path, typer.Argument(show_default=False, help="Engine directory from vlkv build.", parser=path)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", show_default=False, help="The model repository.", parser=path)
    ],
    name: Annotated[str, typer.Option(help="The model's name.")] = "vlkv",
    slots: Annotated[int, typer.Option(help="Lanes: answers that run at once.")] = SLOTS,
    memory: Annotated[
        str, typer.Option(help="Most memory of an instance's caches; auto: half of what is available.")
    ] = AUTO,
    queue: Annotated[int, typer.Option(help="Most requests that may wait.")] = QUEUE,
    policy: Annotated[str, typer.Option(help="Policy of requests that name none.")] = DEFAULT_POLICY,
    threads: Annotated[
        int, typer.Option(help="Threads per operator; 0 divides the cores by the instances.")
    ] = 0,
    instances: Annotated[int, typer.Option(help="Processes, each with its own engine and lanes.")] = 1,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt that can be compressed.", show_default="by memory")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(help="Most tokens of a lane in each layer.", show_default="by memory")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(help="Most prompt tokens between two steps.", show_default=str(SCHEDULED_CHUNK)),
    ] = None,
    reuse: Annotated[
        str,
        typer.Option(help="Most of it for what was read of pictures and prompts; auto: a quarter, 0: none."),
    ] = AUTO,
    client: Annotated[
        str, typer.Option(metavar="NAME", help="Request parameter or forwarded header that names the client.")
    ] = CLIENT,
    client_requests: Annotated[
        int | None, typer.Option(help="Most requests at once of a client.", show_default="no limit")
    ] = None,
    client_tokens: Annotated[
        int | None, typer.Option(help="Most tokens a minute of a client.", show_default="no limit")
    ] = None,
    gpus: Annotated[str, typer.Option(help="Device numbers, such as 0,1; default: the CPU.")] = "",
    plugin: Annotated[
        str, typer.Option(help="Path of libvlkv_tensorrt.so on the server, for a TensorRT engine.")
    ] = "",
    engine_path: Annotated[
        str | None, typer.Option(help="The engine's path on the server.", show_default="its absolute path")
    ] = None,
) -> None:
    """Write a model repository that tritonserver serves."""
    try:
        devices = tuple(int(number) for number in gpus.split(",") if number)
    except ValueError:
        raise VlkvError(f"gpus {gpus!r} is not a list of numbers, such as 0,1") from None
    settings = Settings(
        engine_path or str(engine.resolve()), name, slots, memory, queue, policy, threads, instances, devices,
        plugin, prompt_tokens, capacity, chunk, reuse, client, client_requests, client_tokens,
    )  # fmt: skip
    folder = write_repository(settings, engine, output)
    if not devices:
        manifest = manifests.read(engine)
        for line in lines(settings.plan(manifest), manifest):
            notes().print(line, soft_wrap=True)
    if settings.memory.strip().lower() == AUTO:
        notes().print(
            "these are for the memory here; the server decides by its own at its start", soft_wrap=True
        )
    notes().print(f"wrote {folder}; serve it with: tritonserver --model-repository={output}", soft_wrap=True)
