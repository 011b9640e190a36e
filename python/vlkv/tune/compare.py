"""Compares ways to spend the same calls: each level alone, all levels in turn, and the cooperative loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlkv.tune.api import Budget, tune_one
from vlkv.tune.harness import Harness
from vlkv.tune.proposal import Proposer
from vlkv.tune.report import FunctionReport, summary, write_record
from vlkv.tune.toolchain import levels
from vlkv.tune.verdict import Verdict

COMPILER, NAIVE, COOPERATIVE = "compiler", "naive", "cooperative"
COUNTS = ("calls", "candidates", "correct", "admitted", "compile_seconds", "seconds", "tokens")


def compare(
    pairs: Sequence[tuple[Path, Path]],
    output: Path,
    proposers: Callable[[Harness, Sequence[str]], Sequence[Proposer]],
    budget: Budget,
    begin: Callable[[str], None] = lambda _: None,
    progress: Callable[[Verdict | None], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Tunes each function in each way with the same budget; returns a row per way and writes `comparison.json`.

    `proposers` takes the levels that are worked on in turn; none for the cooperative loop. Runs lie in OUTPUT/WAY/NAME,
    and resume from there. Every speedup is of interleaved pairs with the source as the compiler alone makes it.
    """
    ways: dict[str, tuple[str, ...]] = {level: (level,) for level in levels()}
    ways |= {NAIVE: levels(), COOPERATIVE: ()}
    reports: dict[str, list[FunctionReport]] = {way: [] for way in ways}
    for source, path in pairs:
        for way, turns in ways.items():
            begin(f"{source.stem}, {way}")
            harness = Harness.load(path)
            folder = output / way / source.stem
            reports[way].append(
                tune_one(source, harness, folder, proposers(harness, turns), budget, progress)
            )
    rows = [_compiler(reports[COOPERATIVE]), *(row(way, found) for way, found in reports.items())]
    write_record(output / "comparison.json", rows)
    return rows


def row(way: str, reports: Sequence[FunctionReport]) -> dict[str, Any]:
    """Returns what a way gave over all functions; `elsewhere` is the geometric mean of speedups at other sizes.

    `faster` is the number of functions whose final interval lies above 1. A function without a faster version has the
    speedup 1, at other sizes too.
    """
    other = [1.0 if one.elsewhere is None else one.elsewhere[0] for one in reports]
    by_level: dict[str, Counter[str]] = {}
    for one in reports:
        for level, found in one.by_level.items():
            by_level.setdefault(level, Counter()).update(
                {name: int(found[name]) for name in ("calls", "candidates", "correct", "admitted")}
            )
    return {
        "way": way,
        **summary([one.speedup for one in reports]),
        "elsewhere": summary(other)["geometric_mean"],
        "faster": sum(one.low > 1 for one in reports),
        **{name: sum(getattr(one, name) for one in reports) for name in COUNTS},
        "by_level": {level: dict(found) for level, found in by_level.items()},
    }


def _compiler(reports: Sequence[FunctionReport]) -> dict[str, Any]:
    """The compiler alone: its speedup is 1, as the others are over it."""
    alone = [FunctionReport(one.name, compile_seconds=one.source_seconds) for one in reports]
    return row(COMPILER, alone)
