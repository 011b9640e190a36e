"""`vlkv eval`: what a policy costs in accuracy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import answers, notes, progress
from vlkv.cli.options import Device, EngineFolder, NoVerify, Plugin, Threads
from vlkv.errors import EvalError
from vlkv.policies.builtin import DEFAULT_POLICY

BUDGETS = "0.5,0.2,0.1,0.05"


def evaluate(
    engine: EngineFolder,
    task: Annotated[
        str, typer.Option(help="form-qa, form-list, two-forms, second-question, or folder with --data.")
    ] = "form-qa",
    policy: Annotated[
        str, typer.Option(help="Names with commas between; vlkv policies lists them.")
    ] = f"full,{DEFAULT_POLICY}",
    budget: Annotated[str, typer.Option(help="Shares of the cache with commas between.")] = BUDGETS,
    samples: Annotated[
        int | None, typer.Option(help="How many.", show_default="500, of a folder all")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the forms.")] = 0,
    turns: Annotated[int, typer.Option(help="2 asks a second question about each picture.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="For task folder: a .jsonl file, or its folder.", show_default=False)
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="Other words for form tasks; {key} is the key.", show_default="what is the {key}?"),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer.", show_default="8 to 128, by task")
    ] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Compare vl-cache's parts instead of policies.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for answers, table, chart; there, a run goes on.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    batch: Annotated[
        int, typer.Option(help="Most settings that decode together; memory grows with it.")
    ] = 32,
    no_verify: NoVerify = False,
    threads: Threads = 0,
    device: Device = "cpu",
    plugin: Plugin = None,
) -> None:
    """Measure answers under policies and budgets, with 95% intervals."""
    from vlkv.engine import Engine
    from vlkv.eval.ablation import ablation_settings, parts
    from vlkv.eval.chart import available
    from vlkv.eval.records import Answers
    from vlkv.eval.report import as_json, write_report
    from vlkv.eval.runner import Run, run_name
    from vlkv.eval.runner import evaluate as run_all
    from vlkv.eval.settings import make_settings, split_names, split_numbers
    from vlkv.eval.summary import summarize
    from vlkv.eval.table import terminal
    from vlkv.eval.tasks import NEW_TOKENS, make_samples

    if batch < 1:
        raise EvalError(f"batch {batch} is under 1")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise EvalError(f"max-new-tokens {max_new_tokens} is under 1")
    chosen = make_samples(task, samples, seed, turns, data, question)
    turns = len(chosen[0].turns)
    if ablation and turns > 1:
        raise EvalError("--ablation needs a task with one question a sample")
    budgets = split_numbers(budget)
    settings = ablation_settings(budgets) if ablation else make_settings(split_names(policy), budgets, turns)
    new_tokens = max_new_tokens or NEW_TOKENS[task]
    run = Run(run_name(task, seed, turns, new_tokens, data, question), new_tokens, batch, hits=ablation)
    with progress(data=False, remaining=True) as bar:
        bar.step("opening the engine")
        opened = Engine.load(engine, verify=not no_verify, threads=threads, device=device, plugin=plugin)
        bar.step(f"{task}, {len(settings)} settings")
        bar.total(len(chosen) * len(settings))
        with Answers(output) as known:
            lines = summarize(run_all(opened, run, chosen, settings, known, bar.advance))
    asked = "" if turns == 1 else f", {turns} questions each"
    title = f"{task}: {len(chosen)} samples{asked}, seed {seed}"
    if output is not None:
        written = write_report(output, title, lines, ablation)
        notes().print(f"written: {', '.join(map(str, written))}", style="dim", soft_wrap=True)
        if not available() and not ablation:
            notes().print("no chart: it needs the packages of vlkv[eval]", style="dim")
    if json:
        sys.stdout.write(as_json(title, lines).decode() + "\n")
        return
    tables = (
        [terminal(part.lines(lines), part.title) for part in parts()]
        if ablation
        else [terminal(lines, title)]
    )
    out = answers()
    # as wide as the tables are: a pipe has no width
    wide = out.options.update(width=1000)
    out.width = max(out.width, *(out.measure(table, options=wide).maximum for table in tables))
    for table in tables:
        out.print(table)
