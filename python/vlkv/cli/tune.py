"""`vlkv tune`: faster native operators for an engine, or a faster version of one C or C++ function."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes, progress, write_json
from vlkv.cli.paths import path
from vlkv.errors import TuneError

PROPOSERS = ("search", "agents")


def tune(
    engine: Annotated[
        Path | None,
        typer.Argument(
            help="Engine directory, whose native CPU operators are tuned.", show_default=False, parser=path
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="A C or C++ file with one function, or a folder of such files.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    graphs: Annotated[
        Path | None,
        typer.Option(
            help="The engine's graph directory: its lowering passes are tuned, not its operators.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    harness: Annotated[
        Path | None,
        typer.Option(
            help="Its inputs and oracle, a Python file.", show_default="SOURCE's name with .py", parser=path
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Folder of the results; an interrupted run resumes there.", parser=path
        ),
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
    fuzz_seconds: Annotated[
        float, typer.Option(help="Seconds of random inputs for each candidate; 0: none.")
    ] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    transcripts: Annotated[
        Path | None,
        typer.Option(
            help="A folder with recorded answers, NAME.jsonl for the function NAME, in place of a model.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    comparing: Annotated[
        bool,
        typer.Option(
            "--compare", help="Spend --calls in each way: each level alone, in turn, the cooperative loop."
        ),
    ] = False,
    carried: Annotated[
        Path | None,
        typer.Option(
            "--transfer",
            help="Judge and time the best versions of a run, which another machine may have made.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Take the libraries of --output out of use.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Tune an engine's native operators, or a C or C++ function: what is right and faster is kept.

    The endpoint's key is read from VLKV_TUNE_KEY.
    """
    from vlkv.cli import tune_tables as tables
    from vlkv.ops.tuned import processor, sources_folder
    from vlkv.tune.agents import Agents, Transcript
    from vlkv.tune.api import Budget, pairs_of
    from vlkv.tune.api import tune as run
    from vlkv.tune.compare import compare
    from vlkv.tune.endpoint import Ask
    from vlkv.tune.endpoint import endpoint as asking
    from vlkv.tune.graph.api import tune_graph
    from vlkv.tune.graph.choices import DESCRIPTION, PASSES
    from vlkv.tune.harness import Harness
    from vlkv.tune.limits import network_is_cut
    from vlkv.tune.operators.agent import ConstantAgent, FunctionAgent
    from vlkv.tune.operators.constants import Operator
    from vlkv.tune.operators.engine import switch_off, tune_engine
    from vlkv.tune.operators.search import ConstantSearch
    from vlkv.tune.proposal import Proposer
    from vlkv.tune.search import Search
    from vlkv.tune.transfer import transfer

    if (engine is None) == (source is None):
        raise TuneError("vlkv tune takes an ENGINE, or a function with --source f.c --harness h.py")
    if off:
        switch_off(output)
        return
    if graphs is not None and engine is None:
        raise TuneError("--graphs goes with an ENGINE that was built from them")
    if source is None and (comparing or carried is not None or transcripts is not None):
        raise TuneError("--compare, --transfer and --transcripts go with --source")
    if carried is not None and source is not None:
        found = transfer(pairs_of(source, harness), carried, fuzz_seconds)
        if json:
            write_json(found)
        else:
            tables.carried(found)
        return
    chosen = proposers or ("search" if endpoint is None and transcripts is None else "agents")
    names = [name.strip() for name in chosen.split(",")]
    unknown = [name for name in names if name not in PROPOSERS]
    if unknown:
        raise TuneError(f"--proposers has {unknown[0]!r}; known are {', '.join(PROPOSERS)}")
    answered = endpoint is not None or transcripts is not None
    if ("agents" in names) != answered or (endpoint is not None and transcripts is not None):
        raise TuneError(
            "agents need --endpoint URL and --model NAME, or --transcripts FOLDER; either needs the proposer agents"
        )
    if (endpoint is None) != (model is None):
        raise TuneError("--endpoint and --model are given together")
    budget = Budget(calls, minutes, fuzz_seconds)
    ask = asking(endpoint, model, max_tokens, samples=samples) if endpoint and model else None
    pairs = pairs_of(source, harness) if source is not None else []
    if sys.platform == "linux" and not network_is_cut():
        notes().print(
            "candidates run with a network: this system permits no namespace without one", style="dim"
        )

    def made(found: Harness, turns: Sequence[str] = ()) -> list[Proposer]:
        asked: Ask | None = ask
        if transcripts is not None and (recorded := transcripts / f"{found.path.stem}.jsonl").is_file():
            asked = Transcript(recorded)
        searched = Search(seed, turns=turns, function=found.function)
        proposed: list[Proposer] = [searched] if "search" in names else []
        proposed += [Agents(asked, found, processor(), calls, turns=turns)] if asked else []
        if not proposed:
            raise TuneError(
                f"--transcripts has no {found.path.stem}.jsonl; --proposers search,agents does without"
            )
        return proposed

    def of_passes() -> list[Proposer]:
        searched: list[Proposer] = [ConstantSearch(PASSES, seed)] if "search" in names else []
        return searched + ([ConstantAgent(ask, PASSES, DESCRIPTION, (), processor())] if ask else [])

    def chosen_for(operator: Operator, found: Harness) -> list[Proposer]:
        agents: list[Proposer] = []
        if ask:
            agents = [ConstantAgent(ask, operator, found.description, found.timed, processor())]
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

        if comparing:
            rows = compare(pairs, output, made, budget, begin, lambda _: bar.advance(1))
        elif engine is not None and graphs is not None:
            begin("the graphs")
            report = tune_graph(engine, graphs, output, of_passes(), budget, lambda _: bar.advance(1))
        elif engine is not None:
            report = tune_engine(engine, output, chosen_for, budget, begin, lambda _: bar.advance(1))
        else:
            report = run(pairs, output, made, budget, begin, lambda _: bar.advance(1))
    if comparing:
        notes().print(f"written: {output / 'comparison.json'}", style="dim", soft_wrap=True)
        if json:
            write_json({"ways": rows})
        else:
            tables.ways(rows)
        return
    notes().print(f"written: {output / 'report.json'}", style="dim", soft_wrap=True)
    if json:
        write_json(report.json())
    else:
        tables.functions(report)
