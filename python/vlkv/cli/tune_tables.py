"""The tables that `vlkv tune` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from vlkv.cli.console import answers
from vlkv.tune.report import Report

SPEEDUPS = ("geometric_mean", "p50", "p90", "best")


def functions(report: Report) -> None:
    """Prints a line per function, and what they give together."""
    names = ("function", "calls", "candidates", "correct", "admitted", "speedup", "99%", "level", "compile s")
    table = Table(*names, box=None)
    for one in report.functions:
        interval = f"{one.low:.2f}-{one.high:.2f}"
        numbers = (str(value) for value in (one.calls, one.candidates, one.correct, one.admitted))
        table.add_row(
            one.name, *numbers, f"{one.speedup:.3f}", interval, one.best_level, f"{one.compile_seconds:.1f}"
        )
    answers().print(table)
    together(report.json())


def ways(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a line per way of spending the calls."""
    names = ("way", "mean", "median", "p90", "best", "other sizes", "faster", "calls", "correct", "admitted")
    table = Table(*names, "compile s", box=None)
    for one in rows:
        numbers = (f"{one[name]:.3f}" for name in (*SPEEDUPS, "elsewhere"))
        counts = (f"{one['faster']}", f"{one['calls']}", f"{one['correct']}/{one['candidates']}")
        table.add_row(one["way"], *numbers, *counts, f"{one['admitted']}", f"{one['compile_seconds']:.0f}")
    answers().print(table)


def carried(found: dict[str, Any]) -> None:
    """Prints what versions made elsewhere give on this machine."""
    table = Table("function", "speedup", "99%", "refused by", box=None)
    for one in found["functions"]:
        interval = f"{one['low']:.2f}-{one['high']:.2f}"
        table.add_row(one["name"], f"{one['speedup']:.3f}", interval, one.get("gate", ""))
    answers().print(table)
    together(found)


def together(found: dict[str, Any]) -> None:
    """Prints the speedups over all functions."""
    answers().print(
        f"geometric mean {found['geometric_mean']:.3f}, median {found['p50']:.3f}, "
        f"90th percentile {found['p90']:.3f}, best {found['best']:.3f}"
    )
