"""Tunes the native operators for an engine, one after the other, and puts what was admitted into one library."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from vlkv.errors import TuneError
from vlkv.ops import tuned
from vlkv.ops.tuned import processor
from vlkv.storage.files import hash_file, write_bytes
from vlkv.tune.api import Budget, Subject, tune_subject
from vlkv.tune.harness import Harness
from vlkv.tune.judge import Judge
from vlkv.tune.ledger import ENDINGS
from vlkv.tune.operators import attend, evict, linear, score
from vlkv.tune.operators.constants import OPERATORS, Choice, Operator, parse
from vlkv.tune.operators.library import LEVEL, Core, OperatorToolchain
from vlkv.tune.operators.shapes import Shapes, read
from vlkv.tune.proposal import Proposer
from vlkv.tune.ratio import Ratio
from vlkv.tune.report import Report, speedup, write_record
from vlkv.tune.toolchain import Built, Candidate, tool
from vlkv.tune.verdict import Verdict

HARNESSES: dict[str, Callable[[Shapes], Harness]] = {
    "attend": attend.harness,
    "linear": linear.harness,
    "score": score.harness,
    "evict": evict.harness,
}


def tune_engine(
    engine: Path,
    output: Path,
    proposers: Callable[[Operator, Harness], Sequence[Proposer]],
    budget: Budget,
    begin: Callable[[str], None] = lambda _: None,
    progress: Callable[[Verdict | None], None] = lambda _: None,
) -> Report:
    """Tunes each operator with an equal share of the budget; writes a folder for each, the library and `tuned.json`.

    `budget` is for all operators together; compiling the installed operators once more is not counted.

    Raises:
        EngineError: `engine` is no engine directory.
        TuneError: it has no operators to tune, a compiler or the sources are missing, or `output` is of another run.
    """
    shapes = read(engine)
    names = [name for name in HARNESSES if name != "linear" or shapes.products]
    with tempfile.TemporaryDirectory(prefix="vlkv-tune-") as place:
        core = Core(_folder(Path(place) / "core"), tool("g++"))
        begin("compiling the operators")
        for sanitize in (False, True):
            core.objects(sanitize)
        reports, choices = {}, {}
        for number, name in enumerate(names):
            operator, harness = OPERATORS[name], HARNESSES[name](shapes)
            begin(name)
            subject = _subject(operator, harness, core, shapes)
            share = _share(budget, number, len(names))
            made = proposers(operator, harness) if share else []
            if share is None:
                continue
            reports[name] = tune_subject(subject, output / name, made, share, progress)
            best = parse(operator, (output / name / f"best.{ENDINGS[reports[name].best_level]}").read_text())
            if best != Choice():
                choices[name] = best
        begin("the library")
        library, confirmed = _confirmed(core, shapes, choices, _folder(Path(place) / "final"), budget.fuzz)
        for name, report in reports.items():
            found = confirmed.get(name)
            report.speedup, report.low, report.high = (1.0, 1.0, 1.0) if found is None else speedup(found)
            report.best_flags = choices[name].arguments if name in confirmed else []
            if name not in confirmed:
                report.best_level = LEVEL
        _write(output, shapes, library, {name: (choices[name], confirmed[name]) for name in confirmed})
    whole = Report(list(reports.values()))
    facts = whole.json() | {
        "processor": processor(),
        "engine": shapes.engine,
        "library": library is not None,
    }
    write_record(output / "report.json", facts)
    return whole


def switch_off(output: Path) -> None:
    """Takes a folder's libraries out of use; the next `tune_engine` there puts them into use again."""
    record = tuned.read(output)
    _save(output, msgspec.structs.replace(record, off=True))


def _subject(operator: Operator, harness: Harness, core: Core, shapes: Shapes) -> Subject:
    facts = {"operator": operator.name, "sources": tuned.sources_hash(), "engine": shapes.engine}
    first = Candidate(LEVEL, Choice().text(), (), "installed")
    return Subject(
        operator.name,
        f"the installed {operator.name}",
        harness,
        first,
        facts,
        lambda place: OperatorToolchain(operator, harness, core, place),
    )


def _share(budget: Budget, number: int, count: int) -> Budget | None:
    """An operator's part of the budget; the first take what does not divide. None: no call is left for it."""
    calls = None if budget.calls is None else (budget.calls + count - 1 - number) // count
    if calls == 0:
        return None
    return replace(budget, calls=calls, minutes=None if budget.minutes is None else budget.minutes / count)


def _confirmed(
    core: Core, shapes: Shapes, choices: dict[str, Choice], place: Path, fuzz: float
) -> tuple[Path | None, dict[str, Ratio]]:
    """Builds the library of all choices and judges it whole; what is not faster in it is left out, and so on."""
    plain, why = core.library({}, _folder(place / "plain"))
    if plain is None:
        raise TuneError(why)
    left = dict(choices)
    while left:
        folder = _folder(place / str(len(left)))
        path, why = core.library(left, folder)
        sanitized, other = core.library(left, folder, sanitize=True)
        if path is None or sanitized is None:
            raise TuneError(f"the library of all choices does not compile: {why or other}")
        found: dict[str, Ratio] = {}
        for name, make in HARNESSES.items():
            if name == "linear" and not shapes.products:
                continue
            harness = make(shapes)
            toolchain = OperatorToolchain(OPERATORS[name], harness, core, _folder(folder / f"judge-{name}"))
            judge = Judge(harness, toolchain, fuzz=fuzz)
            gate, why = judge.right(Built(path, sanitized=sanitized))
            if gate:
                raise TuneError(f"the library of all choices is wrong ({name}, {gate}): {why}")
            if name in left:
                ratio, _ = judge.compare(plain, path)
                if ratio is not None and ratio.faster:
                    found[name] = ratio
        if len(found) == len(left):
            return path, found
        left = {name: left[name] for name in found}
    return None, {}


def _write(
    output: Path, shapes: Shapes, library: Path | None, confirmed: dict[str, tuple[Choice, Ratio]]
) -> None:
    """Writes the library and `tuned.json`; libraries of other processors for the same engine stay."""
    kept: tuple[tuned.Library, ...] = ()
    if (output / tuned.NAME).exists():
        earlier = tuned.read(output)
        if earlier.engine == shapes.engine:
            kept = tuple(one for one in earlier.libraries if one.processor != processor())
    made: tuple[tuned.Library, ...] = ()
    if library is not None:
        name = f"operators-{hashlib.sha256(processor().encode()).hexdigest()[:12]}.so"
        fresh = (
            output / f".{name}"
        )  # a process may have the former one loaded: it is replaced, not written over
        shutil.copyfile(library, fresh)
        fresh.replace(output / name)
        operators: dict[str, Any] = {
            operator: {
                "choice": json.loads(choice.text()),
                **dict(zip(("speedup", "low", "high"), speedup(ratio), strict=True)),
            }
            for operator, (choice, ratio) in confirmed.items()
        }
        hashed = hash_file(output / name)
        made = (tuned.Library(name, hashed, processor(), tuned.sources_hash(), operators),)
    _save(output, tuned.Record(tuned.VERSION, shapes.engine, kept + made))


def _save(output: Path, record: tuned.Record) -> None:
    write_bytes(output / tuned.NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
