"""Formats a summary as a table, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table

from vlkv.eval.layout import as_console, as_markdown
from vlkv.eval.metrics import Mean
from vlkv.eval.summary import Line

Rows = list[list[str]]


def percent(mean: Mean | None) -> str:
    """Formats a mean with its interval, as `93.4% (90.8-95.3)`."""
    if mean is None:
        return ""
    return f"{mean.value:.1%} ({100 * mean.low:.1f}-{100 * mean.high:.1f})"


def share(value: float | None) -> str:
    """Formats a share as percent; an empty text for None."""
    return "" if value is None else f"{value:.1%}"


def cells(lines: Sequence[Line]) -> tuple[list[str], Rows]:
    """The names of the columns with content, and one row per line."""
    columns = {
        "policy": [line.label for line in lines],
        "budget": [f"{line.budget:.4g}" for line in lines],
        "kept": [share(line.kept) for line in lines],
        "read": [share(line.read) for line in lines],
        "exact (95%)": [percent(line.exact) for line in lines],
        "similarity (95%)": [percent(line.similarity) for line in lines],
        "perplexity": ["" if line.perplexity is None else f"{line.perplexity:.4g}" for line in lines],
        "agreement (95%)": [percent(line.agreement) for line in lines],
        "hit rate": [share(line.hit) for line in lines],
        "attention kept": [share(line.mass) for line in lines],
    }
    used = {name: texts for name, texts in columns.items() if any(texts)}
    return list(used), [list(row) for row in zip(*used.values(), strict=True)]


def terminal(lines: Sequence[Line], title: str) -> Table:
    """The table for the console."""
    names, rows = cells(lines)
    policies = [row[0] for row in rows]
    ends = [number for number, (own, following) in enumerate(pairwise(policies)) if own != following]
    return as_console(title, names, rows, ends if len(set(policies)) < len(rows) else ())


def markdown(lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    return as_markdown(*cells(lines))


def grid(lines: Sequence[Line]) -> str:
    """A Markdown table of exact answers, with one row per policy and one column per budget."""
    budgets = sorted({line.budget for line in lines if line.budget < 1}, reverse=True)
    rows = []
    for label in dict.fromkeys(line.label for line in lines):
        own = {line.budget: line.exact.value for line in lines if line.label == label}
        whole = own.get(1.0) if set(own) == {1.0} else None
        rows.append([label, *(share(own.get(budget, whole)) for budget in budgets)])
    return as_markdown(["policy", *(f"{budget:.4g}" for budget in budgets)], rows)
