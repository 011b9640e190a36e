"""`vlkv bench`: the latency benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vlkv.cli.console import notes, progress
from vlkv.cli.options import EngineFolder, NoVerify
from vlkv.errors import BenchError
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.storage.files import reason, show, write_bytes

ENVIRONMENTS = Path("out/peers")


def bench(
    engine: EngineFolder,
    prompt_tokens: Annotated[
        str, typer.Option(help="Prompt lengths, image tokens included; k is 1000.")
    ] = "1k,4k,16k,32k",
    batch: Annotated[str, typer.Option(help="Prompts that decode together.")] = "1",
    budget: Annotated[
        str, typer.Option(help="Shares of the cache to keep; 160t keeps 160 tokens a layer.")
    ] = "1,0.1",
    new_tokens: Annotated[
        str, typer.Option(help="Lengths of answers; the longest is run, the others are its beginnings.")
    ] = "100",
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each, by turns.")] = 3,
    policy: Annotated[str, typer.Option(help="Of budgets under 1.")] = DEFAULT_POLICY,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ENGINE", help="A further engine of the checkpoint, e.g. int8=DIR; repeatable."
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Other programs, with --checkpoint: hf, kvpress, openvino, or one of them: hf-sdpa."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The Hugging Face folder that the engine comes from.")
    ] = None,
    peers_directory: Annotated[Path, typer.Option(help="Where peers' environments lie.")] = ENVIRONMENTS,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Of one operator; 0 takes all cores.")] = 0,
    no_verify: NoVerify = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where bench.md, bench.json and charts go.")
    ] = None,
) -> None:
    """Measure latency, full cache and compressed, by turns in one run."""
    from vlkv.bench.arms import open_arms
    from vlkv.bench.fidelity import fidelity
    from vlkv.bench.measure import measure
    from vlkv.bench.peers import PEERS, started
    from vlkv.bench.probe import Bandwidth
    from vlkv.bench.prompts import make_prompts
    from vlkv.bench.report import markdown, record
    from vlkv.bench.settings import (
        Settings,
        parse_batches,
        parse_budgets,
        parse_engines,
        parse_lengths,
        parse_names,
    )

    settings = Settings(
        parse_lengths(prompt_tokens),
        parse_batches(batch),
        parse_budgets(budget),
        parse_lengths(new_tokens, "new-tokens", 2),
        repeat,
        policy,
    )
    engines = [("", engine), *parse_engines(also or [])]
    names = parse_names(peers, tuple(PEERS), "peers") if peers is not None else ()
    if names and checkpoint is None:
        raise BenchError(f"peers {','.join(names)} need --checkpoint, the Hugging Face folder of this engine")
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        raise BenchError(f"checkpoint {show(checkpoint)} holds no config.json")
    if output is not None:
        _make_folder(output)
    with progress(data=False) as bar:
        bar.step("opening the engine" if len(engines) == 1 else "opening the engines")
        arms, own = open_arms(engines, settings, threads, verify=not no_verify)
        first = arms[0].engine
        probe = Bandwidth(threads) if first.manifest.backend == "onnxruntime" else _no_bandwidth
        with started(names, first, checkpoint, peers_directory, threads, bar.step) as (others, failed):
            measured = measure(settings, first.manifest, [*arms, *others], probe, bar.step)
        measured.failed = failed | measured.failed
        bar.step("what the answers are worth")
        cell = min(measured.cells, key=lambda cell: (cell.length, cell.new_tokens))
        asked = make_prompts(first.manifest, cell.length, cell.batch)[0]
        worth = fidelity(arms, asked, cell.runs[arms[0].label][0].tokens[0])
    versions = {arm.label: arm.versions for arm in others}
    found = record(settings, first.manifest, measured, own, versions, worth)
    text = markdown(found, own)
    if output is not None:
        _write(output, text, found)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n" if json else text)


def _no_bandwidth() -> float:
    """A device's memory is not this process's to read."""
    return 0.0


def _make_folder(folder: Path) -> None:
    """So that a place that can't be written is told before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{show(folder)}: {reason(error)}") from None


def _write(folder: Path, text: str, found: dict[str, object]) -> None:
    from vlkv.bench.charts import draw

    write_bytes(folder / "bench.md", text.encode())
    write_bytes(folder / "bench.json", msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    try:
        charts = draw(found)
    except BenchError as error:
        notes().print(str(error), soft_wrap=True)
        return
    for name, data in charts.items():
        write_bytes(folder / name, data)
