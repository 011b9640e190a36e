"""`vlkv eval`: the accuracy of policies and budgets."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from vlkv.cli.console import answers, notes, progress, write_json
from vlkv.cli.options import Device, EngineFolder, NoVerify, Plugin, Prune, Recall, Threads
from vlkv.cli.paths import path
from vlkv.errors import EvalError
from vlkv.policies.builtin import DEFAULT_POLICY

if TYPE_CHECKING:
    from rich.table import Table

    from vlkv.eval.api import Report
    from vlkv.eval.harness import HarnessReport
    from vlkv.eval.text_api import TextReport

BUDGETS = "0.5,0.2,0.1,0.05"


def evaluate(
    engine: EngineFolder,
    task: Annotated[
        str,
        typer.Option(
            help="form-qa, form-list, two-forms, second-question, text, or folder with --data; with --harness, "
            "comma-separated names of its tasks."
        ),
    ] = "form-qa",
    harness: Annotated[
        str | None,
        typer.Option(
            help="Run the tasks of another harness, which has to be installed: lmms-eval or vlmevalkit.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Comma-separated names; vlkv policies lists them.")
    ] = f"full,{DEFAULT_POLICY}",
    budget: Annotated[str, typer.Option(help="Comma-separated shares of the cache.")] = BUDGETS,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Number of samples (texts: of each kind).", show_default="500; 12 texts; a folder's all"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the forms or texts.")] = 0,
    turns: Annotated[int, typer.Option(help="2 asks a second question about each picture.")] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            help="For task folder: a .jsonl file, or its folder. With --harness: a folder of its tasks "
            "(lmms-eval: YAML, vlmevalkit: TSV).",
            show_default=False,
            parser=path,
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="The question of form tasks; {key} is the key.", show_default="what is the {key}?"),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer.", show_default="8 to 128, by task")
    ] = None,
    prune: Prune = None,
    recall: Recall = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Compare vl-cache's parts instead of policies.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for answers, table and chart; an interrupted run resumes there.",
            show_default=False,
            parser=path,
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
    from vlkv.eval import run
    from vlkv.eval.ablation import parts
    from vlkv.eval.api import Report
    from vlkv.eval.chart import available
    from vlkv.eval.harness import run_harness
    from vlkv.eval.settings import split_names, split_numbers
    from vlkv.eval.table import terminal
    from vlkv.eval.text_api import TextReport, run_texts
    from vlkv.eval.text_report import text_tables

    if task == "text" and (turns, data, question, ablation, prune, recall) != (
        1,
        None,
        None,
        False,
        None,
        None,
    ):
        raise EvalError("task text takes no --turns, --data, --question, --ablation, --prune or --recall")
    if harness is not None:
        if (seed, turns, question, ablation) != (0, 1, None, False):
            raise EvalError("--harness takes no --seed, --turns, --question or --ablation")
        options = {
            "verify": not no_verify,
            "threads": threads,
            "device": device,
            "plugin": None if plugin is None else str(plugin.absolute()),
        }
        with ExitStack() as stack:
            if output is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="vlkv-eval-")))
            else:
                output.mkdir(parents=True, exist_ok=True)
                folder = output
            judged = run_harness(
                harness,
                engine,
                split_names(task),
                folder=folder,
                policies=split_names(policy),
                budgets=split_numbers(budget),
                samples=samples,
                data=data,
                max_new_tokens=max_new_tokens,
                prune=prune,
                recall=recall,
                batch=batch,
                **options,
            )
            _show(judged, [judged.table()], output, json)
        return
    with progress(data=False, remaining=True) as bar:

        def opened() -> Engine:
            bar.step("opening the engine")
            return Engine.load(engine, verify=not no_verify, threads=threads, device=device, plugin=plugin)

        def begin(what: str, records: int) -> None:
            bar.step(what)
            bar.total(records)

        policies, budgets = () if ablation else split_names(policy), split_numbers(budget)
        if task == "text":
            report: Report | TextReport = run_texts(
                opened,
                policies=policies,
                budgets=budgets,
                samples=samples,
                seed=seed,
                max_new_tokens=max_new_tokens,
                output=output,
                batch=batch,
                begin=begin,
                progress=bar.advance,
            )
        else:
            report = run(
                opened,
                task,
                policies=policies,
                budgets=budgets,
                samples=samples,
                seed=seed,
                turns=turns,
                data=data,
                question=question,
                max_new_tokens=max_new_tokens,
                ablation=ablation,
                prune=prune,
                recall=recall,
                output=output,
                batch=batch,
                begin=begin,
                progress=bar.advance,
            )
    if isinstance(report, TextReport):
        tables = text_tables(report.lines, report.title)
    elif ablation:
        tables = [terminal(part.lines(report.lines), part.title) for part in parts()]
    else:
        tables = [terminal(report.lines, report.title)]
    if output is not None and not available() and isinstance(report, Report) and not ablation:
        notes().print("no chart: it needs the packages of vlkv[bench]", style="dim")
    _show(report, tables, output, json)


def _show(
    report: Report | TextReport | HarnessReport, tables: list[Table], output: Path | None, json: bool
) -> None:
    """Writes a report's files, and prints it."""
    if output is not None:
        written = report.write(output)
        notes().print(f"written: {', '.join(map(str, written))}", style="dim", soft_wrap=True)
    if json:
        write_json(report.json())
        return
    out = answers()
    # a pipe has no width: take that of the tables
    wide = out.options.update(width=1000)
    out.width = max(out.width, *(out.measure(table, options=wide).maximum for table in tables))
    for table in tables:
        out.print(table)
