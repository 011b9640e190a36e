"""Tunes the graph level of an engine, and writes the faster engine with its record."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from vlkv.errors import TuneError
from vlkv.ops.tuned import processor
from vlkv.storage import manifest as manifests
from vlkv.storage.files import hash_file, show
from vlkv.tune.api import Budget, resume, spend
from vlkv.tune.graph.builder import GraphBuilder, options_of
from vlkv.tune.graph.choices import PASSES, passes_of
from vlkv.tune.graph.judge import PAIRS, GraphJudge
from vlkv.tune.ledger import Ledger
from vlkv.tune.operators.constants import Choice, parse
from vlkv.tune.operators.library import LEVEL
from vlkv.tune.proposal import Proposer, State
from vlkv.tune.report import FunctionReport, Report, write_record
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import Verdict

NAME = "graph.json"


def tune_graph(
    engine: Path,
    graphs: Path,
    output: Path,
    proposers: Sequence[Proposer],
    budget: Budget,
    progress: Callable[[Verdict | None], None] = lambda _: None,
    pairs: int = PAIRS,
) -> Report:
    """Looks for passes with which `engine`, which was built from `graphs`, is faster.

    Writes `graph.json` with the passes and the command that builds the engine again, and the engine itself if it is
    faster, in `output`/engine.

    Raises:
        EngineError: `engine` or `graphs` is no directory of vlkv.
        TuneError: the engine has no passes to choose, or `graphs` does not build.
    """
    words = options_of(engine)
    manifests.read(graphs)
    facts = {
        "engine": hash_file(engine / manifests.NAME),
        "graphs": hash_file(graphs / manifests.NAME),
        "processor": processor(),
        "proposers": [proposer.name for proposer in proposers],
    }
    ledger = Ledger(output, facts)
    with tempfile.TemporaryDirectory(prefix=".passes-", dir=output) as place:
        builder = GraphBuilder(graphs, words, Path(place).resolve())
        first = Candidate(LEVEL, Choice().text(), (), "usual")
        built = builder.build(first)
        if built.path is None:
            raise TuneError(f"{show(graphs)}: {built.reason}")
        judge = GraphJudge(builder, pairs)
        why = judge.wrong(built.path)
        if why:
            raise TuneError(f"{show(graphs)} with the usual passes: {why}")
        judge.know(built.path)
        state = State(builder, first, built.path, (LEVEL,))
        state.at[LEVEL] = first, 1.0
        resume(ledger, state, proposers)
        spend(state, judge, ledger, proposers, budget, progress)
        final = None if state.library == built.path else judge.compare(built.path, state.library)
        report = FunctionReport.of(PASSES.name, ledger.records, final, False)
        report.best_level, report.source_seconds = LEVEL, built.seconds
        shutil.rmtree(output / "engine", ignore_errors=True)
        if report.low > 1:
            shutil.copytree(state.library, output / "engine")
    passes = ",".join(passes_of(parse(PASSES, state.best.text) if report.low > 1 else Choice()))
    command = ["vlkv", "build", str(graphs), "-o", str(output / "engine"), *words, "--passes", passes]
    record = {**facts, "passes": passes.split(","), "build": shlex.join(command), "report": asdict(report)}
    write_record(output / NAME, record)
    whole = Report([report])
    write_record(output / "report.json", whole.json())
    return whole
