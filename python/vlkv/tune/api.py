"""Runs the tuning of one function: proposers in turn, the judge, the ledger, the report."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vlkv.errors import TuneError
from vlkv.ops.tuned import processor
from vlkv.storage.files import reason, show
from vlkv.tune.harness import Harness, Sizes
from vlkv.tune.judge import FUZZ_SECONDS, Judge
from vlkv.tune.ledger import ENDINGS, Ledger
from vlkv.tune.limits import network_is_cut
from vlkv.tune.proposal import Proposer, State
from vlkv.tune.report import FunctionReport, Report, speedup, write_record
from vlkv.tune.toolchain import BASE_FLAGS, Candidate, Toolchain
from vlkv.tune.verdict import Verdict

SUFFIXES = (".c", ".cc", ".cpp", ".cxx")


@dataclass(frozen=True)
class Budget:
    """What a function may cost: calls of proposers, or minutes; whichever ends first.

    `fuzz` is for how many seconds each candidate gets random inputs; see `Judge`.
    """

    calls: int | None = None
    minutes: float | None = None
    fuzz: float = FUZZ_SECONDS

    def __post_init__(self) -> None:
        if self.calls is None and self.minutes is None:
            raise TuneError("a budget is needed: --calls N or --minutes M")
        if self.calls is not None and self.calls < 1:
            raise TuneError(f"--calls is {self.calls}; at least 1")
        if self.minutes is not None and not 0 < self.minutes <= 10_000:
            raise TuneError(f"--minutes is {self.minutes:g}; above 0, at most 10000")
        if not 0 <= self.fuzz <= 3600:
            raise TuneError(f"--fuzz-seconds is {self.fuzz:g}; 0 (no fuzzing) to 3600")

    def spent(self, calls: int, seconds: float) -> bool:
        """Whether the calls or the minutes are used up."""
        over = self.minutes is not None and seconds > 60 * self.minutes
        return over or (self.calls is not None and calls >= self.calls)


def pairs_of(source: Path, harness: Path | None) -> list[tuple[Path, Path]]:
    """Returns sources with their harnesses: one, or every source of a folder that has a `.py` of its name beside it."""
    if source.is_dir():
        if harness is not None:
            raise TuneError(
                f"{show(source)} is a folder: its harnesses lie beside its sources, so no --harness"
            )
        found = [(p, p.with_suffix(".py")) for p in sorted(source.iterdir()) if p.suffix in SUFFIXES]
        found = [pair for pair in found if pair[1].exists()]
        if not found:
            raise TuneError(
                f"{show(source)}: no source ({', '.join(SUFFIXES)}) with a harness (.py) of the same name"
            )
        return found
    if source.suffix not in SUFFIXES or not source.is_file():
        raise TuneError(f"{show(source)}: no file that ends in {', '.join(SUFFIXES)}")
    harness = harness or source.with_suffix(".py")
    if not harness.is_file():
        raise TuneError(f"{show(harness)}: no such harness; name one with --harness")
    return [(source, harness)]


def tune(
    pairs: Sequence[tuple[Path, Path]],
    output: Path,
    proposers: Callable[[Harness], Sequence[Proposer]],
    budget: Budget,
    begin: Callable[[str], None] = lambda _: None,
    progress: Callable[[Verdict | None], None] = lambda _: None,
) -> Report:
    """Tunes each function; results lie in `output`, in a folder by the function's name if there are several."""
    done = []
    for source, path in pairs:
        harness = Harness.load(path)
        begin(harness.function)
        folder = output if len(pairs) == 1 else output / source.stem
        done.append(tune_one(source, harness, folder, proposers(harness), budget, progress))
    report = Report(done)
    output.mkdir(parents=True, exist_ok=True)
    write_record(output / "report.json", report.json())
    return report


def tune_one(
    source: Path,
    harness: Harness,
    folder: Path,
    proposers: Sequence[Proposer],
    budget: Budget,
    progress: Callable[[Verdict | None], None] = lambda _: None,
) -> FunctionReport:
    """Tunes one function and writes `ledger.jsonl`, `candidates/`, and the best version with its library and record."""
    try:
        text = source.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TuneError(f"{show(source)}: {reason(error)}") from error
    subject = Subject(
        source.stem,
        show(source),
        harness,
        Candidate("source", text, origin="source"),
        {"source": hashlib.sha256(text.encode()).hexdigest()},
        lambda place: Toolchain(harness, source, place),
    )
    return tune_subject(subject, folder, proposers, budget, progress)


@dataclass(frozen=True)
class Subject:
    """What is tuned: its name in reports and in errors, its harness, the first version, and a maker of its compilers.

    `facts` are hashes that tell one subject from another; a run resumes where all are equal.
    """

    name: str
    shown: str
    harness: Harness
    first: Candidate
    facts: Mapping[str, str]
    toolchain: Callable[[Path], Toolchain]


def tune_subject(
    subject: Subject,
    folder: Path,
    proposers: Sequence[Proposer],
    budget: Budget,
    progress: Callable[[Verdict | None], None] = lambda _: None,
) -> FunctionReport:
    """Tunes one subject; see `tune_one`."""
    facts = {
        **subject.facts,
        "harness": hashlib.sha256(subject.harness.path.read_bytes()).hexdigest(),
        "processor": processor(),
        "proposers": [proposer.name for proposer in proposers],
    }
    with tempfile.TemporaryDirectory(prefix="vlkv-tune-") as place:
        toolchain = subject.toolchain(Path(place))
        judge = Judge(subject.harness, toolchain, fuzz=budget.fuzz)
        first = subject.first
        built = toolchain.build(first)
        if built.path is None:
            raise TuneError(f"{subject.shown}: {built.reason}")
        gate, why = judge.right(built)
        if gate:
            raise TuneError(f"{subject.shown} does not pass its own harness ({gate}): {why}")
        judge.know(built.path)
        ledger = Ledger(folder, facts)
        state = State(toolchain, first, built.path, toolchain.levels())
        state.at[first.level] = first, 1.0
        resume(ledger, state, proposers)
        spend(state, judge, ledger, proposers, budget, progress)
        final = None
        if state.library != built.path:
            final, why = judge.compare(built.path, state.library)
            if final is None:
                raise TuneError(f"{subject.shown}: the best version fails when timed again: {why}")
        report = FunctionReport.of(subject.name, ledger.records, final, network_is_cut())
        report.best_level, report.best_flags = state.best.level, list(state.best.flags)
        report.source_seconds = built.seconds
        if final is not None and subject.harness.elsewhere:
            other, _ = judge.compare(built.path, state.library, subject.harness.elsewhere)
            report.elsewhere = None if other is None else speedup(other)
        _write(folder, state, report, facts)
        return report


def resume(ledger: Ledger, state: State, proposers: Sequence[Proposer]) -> None:
    """Takes in the records of an earlier run: nothing is timed again but the best, which is built anew."""
    for record in ledger.records:
        state.calls += not record.get("sample")
        for proposer in proposers:
            if record.get("proposer") == proposer.name:
                proposer.remember(record)
        if record.get("admitted"):
            candidate = ledger.candidate(record)
            built = state.toolchain.build(candidate)
            if built.path is not None:
                state.best, state.library, state.relative = candidate, built.path, record["relative"]
                state.at[candidate.level] = candidate, state.relative


class Judging(Protocol):
    """Judges candidates; `probes` are sizes that proposers ask to be tried as well."""

    probes: list[Sizes]

    def judge(self, candidate: Candidate, best: Path) -> tuple[Verdict, Path | None]:
        """Returns the verdict on a candidate and what was built; `best` is what to be faster than."""
        ...


def spend(
    state: State,
    judge: Judging,
    ledger: Ledger,
    proposers: Sequence[Proposer],
    budget: Budget,
    progress: Callable[[Verdict | None], None],
) -> None:
    """Asks the proposers in turn, judges what they give, and keeps the records, until the budget is spent."""
    begin = time.perf_counter()
    while not budget.spent(state.calls, time.perf_counter() - begin):
        proposer = proposers[state.calls % len(proposers)]
        for sample, proposal in enumerate(proposer.propose(state)):
            record: dict[str, Any] = {"call": state.calls, "proposer": proposer.name, **proposal.record}
            record |= {"sample": sample} if sample else {}
            verdict = None
            judge.probes = [sizes for one in proposers for sizes in getattr(one, "probes", ())]
            if proposal.candidate is None:
                record["reason"] = proposal.reason
            else:
                verdict, library = judge.judge(proposal.candidate, state.library)
                state.note(proposal.candidate, verdict, library)
                record |= {key: value for key, value in asdict(verdict).items() if value not in ("", None)}
                record |= {"admitted": verdict.admitted, "relative": state.relative}
                if proposal.candidate.level in ("constants", "functions"):
                    record["choice"] = proposal.candidate.text
                proposer.learn(proposal, verdict)
            ledger.add(record, proposal.candidate)
            progress(verdict)
        state.calls += 1


def _write(folder: Path, state: State, report: FunctionReport, facts: dict[str, Any]) -> None:
    for ending in ENDINGS.values():
        (folder / f"best.{ending}").unlink(missing_ok=True)
    (folder / f"best.{ENDINGS[state.best.level]}").write_text(state.best.text)
    shutil.copyfile(state.library, folder / "best.so")
    record = {**facts, "best": {**asdict(state.best), "text": f"best.{ENDINGS[state.best.level]}"}}
    record["base_flags"] = list(BASE_FLAGS)
    record["report"] = asdict(report)
    write_record(folder / "best.json", record)
