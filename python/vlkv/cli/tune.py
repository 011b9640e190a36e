"""`vlkv tune`: faster native operators for an engine, or a faster version of one C or C++ function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vlkv.cli.console import answers, notes, progress, write_json
from vlkv.errors import TuneError

PROPOSERS = ("search", "agents")


def tune(
    engine: Annotated[
        Path | None,
        typer.Argument(help="Engine directory, whose native CPU operators are tuned.", show_default=False),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="A C or C++ file with one function, or a folder of such files.", show_default=False
        ),
    ] = None,
    harness: Annotated[
        Path | None,
        typer.Option(help="Its inputs and oracle, a Python file.", show_default="SOURCE's name with .py"),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the results; an interrupted run resumes there.")
    ] = Path("out/tuned"),
    proposers: Annotated[
        str | None,
        typer.Option(help="Comma-separated, in turn.", show_default="search; with --endpoint agents"),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="A language model with OpenAI's API, such as http://127.0.0.1:8000/v1.", show_default=False
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer.")] = 4096,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Answers to each prompt, drawn at random.")] = 1,
    calls: Annotated[
        int | None, typer.Option(help="Most calls of proposers, per function or for the engine.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Most minutes, per function or for the engine.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    off: Annotated[bool, typer.Option("--off", help="Take the libraries of --output out of use.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Tune an engine's native operators, or a C or C++ function: what is right and faster is kept.

    The endpoint's key is read from VLKV_TUNE_KEY.
    """
    from vlkv.ops.tuned import processor, sources_folder
    from vlkv.tune.agents import Agents
    from vlkv.tune.api import Budget, pairs_of
    from vlkv.tune.api import tune as run
    from vlkv.tune.endpoint import endpoint as asking
    from vlkv.tune.harness import Harness
    from vlkv.tune.limits import network_is_cut
    from vlkv.tune.operators.agent import ConstantAgent, FunctionAgent
    from vlkv.tune.operators.constants import Operator
    from vlkv.tune.operators.engine import switch_off, tune_engine
    from vlkv.tune.operators.search import ConstantSearch
    from vlkv.tune.proposal import Proposer
    from vlkv.tune.search import Search

    if (engine is None) == (source is None):
        raise TuneError("vlkv tune takes an ENGINE, or a function with --source f.c --harness h.py")
    if off:
        switch_off(output)
        return
    chosen = proposers or ("search" if endpoint is None else "agents")
    names = [name.strip() for name in chosen.split(",")]
    unknown = [name for name in names if name not in PROPOSERS]
    if unknown:
        raise TuneError(f"--proposers has {unknown[0]!r}; known are {', '.join(PROPOSERS)}")
    if ("agents" in names) != (endpoint is not None):
        raise TuneError(
            "agents need --endpoint URL and --model NAME, and an endpoint needs the proposer agents"
        )
    if (endpoint is None) != (model is None):
        raise TuneError("--endpoint and --model are given together")
    budget = Budget(calls, minutes)
    ask = asking(endpoint, model, max_tokens, samples=samples) if endpoint and model else None
    pairs = pairs_of(source, harness) if source is not None else []
    if sys.platform == "linux" and not network_is_cut():
        notes().print(
            "candidates run with a network: this system permits no namespace without one", style="dim"
        )

    def made(found: Harness) -> list[Proposer]:
        agents = [Agents(ask, found, processor(), calls)] if ask else []
        return [Search(seed) if name == "search" else agents[0] for name in names]

    def chosen_for(operator: Operator, found: Harness) -> list[Proposer]:
        agents: list[Proposer] = []
        if ask:
            agents = [ConstantAgent(ask, operator, found, processor())]
            agents.append(FunctionAgent(ask, operator, sources_folder()))
        return [
            one
            for name in names
            for one in ([ConstantSearch(operator, seed)] if name == "search" else agents)
        ]

    with progress(data=False) as bar:

        def begin(name: str) -> None:
            bar.step(f"tuning {name}")
            if calls is not None:
                bar.total(calls)

        if engine is not None:
            report = tune_engine(engine, output, chosen_for, budget, begin, lambda _: bar.advance(1))
        else:
            report = run(pairs, output, made, budget, begin, lambda _: bar.advance(1))
    notes().print(f"written: {output / 'report.json'}", style="dim", soft_wrap=True)
    facts = report.json()
    if json:
        write_json(facts)
        return
    table = Table(
        "function",
        "calls",
        "candidates",
        "correct",
        "admitted",
        "speedup",
        "99%",
        "level",
        "compile s",
        box=None,
    )
    for one in report.functions:
        interval = f"{one.low:.2f}-{one.high:.2f}"
        numbers = (str(value) for value in (one.calls, one.candidates, one.correct, one.admitted))
        table.add_row(
            one.name, *numbers, f"{one.speedup:.3f}", interval, one.best_level, f"{one.compile_seconds:.1f}"
        )
    out = answers()
    out.print(table)
    out.print(
        f"geometric mean {facts['geometric_mean']:.3f}, median {facts['p50']:.3f}, "
        f"90th percentile {facts['p90']:.3f}, best {facts['best']:.3f}"
    )
