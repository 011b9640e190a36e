"""`vlkv triton`: an engine's model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes
from vlkv.errors import VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.scheduler.plan import SLOTS
from vlkv.scheduler.scheduler import QUEUE
from vlkv.serving.triton.repository import Settings, write_repository


def triton(
    engine: Annotated[Path, typer.Argument(show_default=False, help="What vlkv build wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", show_default=False, help="The model repository.")],
    name: Annotated[str, typer.Option(help="The model's name.")] = "vlkv",
    slots: Annotated[int, typer.Option(help="Answers that run at once.")] = SLOTS,
    memory: Annotated[str, typer.Option(help="What caches may take, of an instance.")] = "1GiB",
    queue: Annotated[int, typer.Option(help="Requests that may wait.")] = QUEUE,
    policy: Annotated[str, typer.Option(help="Where a request names none.")] = DEFAULT_POLICY,
    threads: Annotated[
        int, typer.Option(help="Threads of one operator; 0 divides the cores by the instances.")
    ] = 0,
    instances: Annotated[int, typer.Option(help="Processes, each with an engine and slots of its own.")] = 1,
    gpus: Annotated[str, typer.Option(help="Device numbers, as 0,1; without, on the CPU.")] = "",
    engine_path: Annotated[
        str | None, typer.Option(help="Where the server finds the engine.", show_default="its absolute path")
    ] = None,
) -> None:
    """Write a model repository that tritonserver serves."""
    try:
        devices = tuple(int(number) for number in gpus.split(",") if number)
    except ValueError:
        raise VlkvError(f"gpus {gpus!r} is no list of numbers; 0,1 is") from None
    settings = Settings(
        engine_path or str(engine.resolve()), name, slots, memory, queue, policy, threads, instances, devices
    )
    folder = write_repository(settings, engine, output)
    notes().print(f"wrote {folder}; serve it with: tritonserver --model-repository={output}", soft_wrap=True)
