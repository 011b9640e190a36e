"""`vlkv bench`: the latency benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes, progress, write_json
from vlkv.cli.options import Device, EngineFolder, NoVerify, Tuned
from vlkv.cli.paths import path
from vlkv.policies.builtin import DEFAULT_POLICY

ENVIRONMENTS = Path("out/peers")


def bench(
    engine: EngineFolder,
    prompt_tokens: Annotated[
        str, typer.Option(help="Prompt lengths, including image tokens; k is 1000.")
    ] = "1k,4k,16k,32k",
    batch: Annotated[str, typer.Option(help="Prompts that decode together.")] = "1",
    budget: Annotated[
        str, typer.Option(help="Shares of the cache to keep; 160t keeps 160 tokens per layer.")
    ] = "1,0.1",
    new_tokens: Annotated[
        str, typer.Option(help="Lengths of answers; the longest is run, shorter ones are its beginnings.")
    ] = "100",
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each, in turn.")] = 3,
    policy: Annotated[str, typer.Option(help="The policy of budgets under 1.")] = DEFAULT_POLICY,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ENGINE", help="Another engine of the checkpoint, e.g. int8=DIR; repeatable."
        ),
    ] = None,
    tuned: Tuned = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Other programs, with --checkpoint: hf, kvpress, openvino, llamacpp, or one mode such as hf-sdpa."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The Hugging Face folder that the engine was exported from.", parser=path),
    ] = None,
    peers_directory: Annotated[
        Path, typer.Option(help="Folder of peers' environments.", parser=path)
    ] = ENVIRONMENTS,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads per operator; 0: all cores.")] = 0,
    no_verify: NoVerify = False,
    device: Device = "cpu",
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for bench.md, bench.json and charts.", parser=path),
    ] = None,
) -> None:
    """Measure latency with the full and the compressed cache, in turn in one run."""
    from vlkv.bench import Settings, run
    from vlkv.bench.peers import PEERS
    from vlkv.bench.settings import (
        parse_batches,
        parse_budgets,
        parse_engines,
        parse_lengths,
        parse_names,
    )
    from vlkv.ops.tuned import choose

    settings = Settings(
        parse_lengths(prompt_tokens),
        parse_batches(batch),
        parse_budgets(budget),
        parse_lengths(new_tokens, "new-tokens", 2),
        repeat,
        policy,
    )
    if tuned is not None:
        library, why = choose(tuned, engine)
        if library is None:
            notes().print(f"{why}: the engine runs with the installed operators alone", soft_wrap=True)
            tuned = None
    with progress(data=False) as bar:
        report = run(
            engine,
            settings,
            also=dict(parse_engines(also or [])),
            tuned=tuned,
            peers=parse_names(peers, tuple(PEERS), "peers") if peers is not None else (),
            checkpoint=checkpoint,
            peers_directory=peers_directory,
            output=output,
            threads=threads,
            verify=not no_verify,
            device=device,
            progress=bar.step,
        )
    if output is not None:
        no_charts = report.write(output)
        if no_charts is not None:
            notes().print(no_charts, soft_wrap=True)
    if json:
        write_json(report.json())
    else:
        sys.stdout.write(report.markdown)
