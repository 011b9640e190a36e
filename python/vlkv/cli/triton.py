"""`vlkv triton`: an engine's model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes
from vlkv.errors import VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.scheduler.allowance import lines
from vlkv.scheduler.plan import SLOTS
from vlkv.scheduler.scheduler import QUEUE
from vlkv.scheduler.worker import SCHEDULED_CHUNK
from vlkv.serving.size import AUTO
from vlkv.serving.triton.repository import Settings, write_repository
from vlkv.storage import manifest as manifests


def triton(
    engine: Annotated[Path, typer.Argument(show_default=False, help="What vlkv build wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", show_default=False, help="The model repository.")],
    name: Annotated[str, typer.Option(help="The model's name.")] = "vlkv",
    slots: Annotated[int, typer.Option(help="Answers that run at once.")] = SLOTS,
    memory: Annotated[
        str, typer.Option(help="What caches may take, of an instance; auto: half of what is at hand.")
    ] = AUTO,
    queue: Annotated[int, typer.Option(help="Requests that may wait.")] = QUEUE,
    policy: Annotated[str, typer.Option(help="Where a request names none.")] = DEFAULT_POLICY,
    threads: Annotated[
        int, typer.Option(help="Threads of one operator; 0 divides the cores by the instances.")
    ] = 0,
    instances: Annotated[int, typer.Option(help="Processes, each with an engine and slots of its own.")] = 1,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="The longest prompt that is compressed.", show_default="by memory")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(help="The most tokens of an answer in a layer.", show_default="by memory")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(help="The most prompt tokens between two steps.", show_default=str(SCHEDULED_CHUNK)),
    ] = None,
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
        engine_path or str(engine.resolve()), name, slots, memory, queue, policy, threads, instances, devices,
        prompt_tokens, capacity, chunk,
    )  # fmt: skip
    folder = write_repository(settings, engine, output)
    manifest = manifests.read(engine)
    for line in lines(settings.plan(manifest), manifest):
        notes().print(line, soft_wrap=True)
    if settings.memory.strip().lower() == AUTO:
        notes().print("this is by the memory at hand here; the server decides where it runs", soft_wrap=True)
    notes().print(f"wrote {folder}; serve it with: tritonserver --model-repository={output}", soft_wrap=True)
