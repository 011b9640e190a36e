"""Summarises records of texts, one line per kind and setting, as tables and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path

import msgspec
from rich.table import Table

from vlkv.eval.layout import as_console, as_markdown
from vlkv.eval.metrics import Mean, average
from vlkv.eval.records import Record
from vlkv.eval.table import percent
from vlkv.generation.forced import perplexity
from vlkv.storage.files import write_bytes


@dataclass(frozen=True)
class TextLine:
    """One setting's results on one kind of text.

    Fields:
        kind, policy, budget: the kind of text and the setting.
        texts, tokens: the number of texts, and of tokens that follow the prompts.
        perplexity: the perplexity of those tokens.
        ratio: perplexity over the full cache's, as a geometric mean over texts; None without the full cache.
        agreement: the share of first choices that equal the full cache's, as a mean over texts.
        divergence: KL(full cache || this) per token in nats, as a mean over texts.
        kept: the share of the prompt's cache that was kept.
    """

    kind: str
    policy: str
    budget: float
    texts: int
    tokens: int
    perplexity: float
    ratio: Mean | None
    agreement: Mean
    divergence: Mean
    kept: float


def summarize_texts(records: Sequence[Record]) -> list[TextLine]:
    """One line per kind and setting, in the order of their first records."""
    groups: dict[tuple[str, str, str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.kind, record.policy, record.digest, record.budget), []).append(record)
    whole = {record.sample: record.loss for record in records if record.policy == "full"}
    return [_line(group, whole) for group in groups.values()]


def _line(group: Sequence[Record], whole: dict[int, float]) -> TextLine:
    first = group[0]
    tokens = sum(record.tokens for record in group)
    ratio = None
    if all(record.sample in whole for record in group):
        found = average([(record.loss - whole[record.sample]) / record.tokens for record in group])
        ratio = Mean(*(exp(value) for value in (found.value, found.low, found.high)))
    return TextLine(
        kind=first.kind,
        policy=first.policy,
        budget=first.budget,
        texts=len(group),
        tokens=tokens,
        perplexity=perplexity(sum(record.loss for record in group), tokens),
        ratio=ratio,
        agreement=average([record.agreed / record.tokens for record in group]),
        divergence=average([record.divergence / record.tokens for record in group]),
        kept=sum(sum(record.kept) / (len(record.kept) * record.prompt_tokens) for record in group)
        / len(group),
    )


NAMES = (
    "policy", "budget", "kept", "perplexity", "over full's (95%)", "agreement (95%)", "KL, nats (95%)"
)  # fmt: skip


def _cells(line: TextLine) -> list[str]:
    return [
        line.policy,
        f"{line.budget:.4g}",
        f"{line.kept:.1%}",
        f"{line.perplexity:.4g}",
        "" if line.ratio is None else _interval(line.ratio),
        percent(line.agreement),
        _interval(line.divergence),
    ]


def _interval(mean: Mean) -> str:
    return f"{mean.value:.3f} ({mean.low:.3f}-{mean.high:.3f})"


def text_tables(lines: Sequence[TextLine], title: str) -> list[Table]:
    """The tables for the console, one per kind."""
    kinds = dict.fromkeys(line.kind for line in lines)
    return [
        as_console(f"{title}, {kind}", NAMES, [_cells(line) for line in lines if line.kind == kind])
        for kind in kinds
    ]


def text_markdown(lines: Sequence[TextLine], title: str) -> str:
    """The tables as Markdown: a grid of perplexity and agreement per kind, then all figures."""
    text = f"# {title}\n"
    for kind in dict.fromkeys(line.kind for line in lines):
        own = [line for line in lines if line.kind == kind]
        text += f"\n## {kind}: {own[0].texts} texts, {own[0].tokens} tokens\n\n{_grid(own)}\n"
        text += as_markdown(NAMES, [_cells(line) for line in own])
    return text


def _grid(lines: Sequence[TextLine]) -> str:
    budgets = sorted({line.budget for line in lines if line.budget < 1}, reverse=True)
    rows = []
    for policy in dict.fromkeys(line.policy for line in lines):
        found = {line.budget: line for line in lines if line.policy == policy}
        shown = [found.get(budget, found.get(1.0)) for budget in budgets]
        rows.append(
            [
                policy,
                *("" if one is None else f"{one.perplexity:.3g}, {one.agreement.value:.0%}" for one in shown),
            ]
        )
    return as_markdown(["perplexity, agreement", *(f"{budget:.4g}" for budget in budgets)], rows)


def text_json(title: str, lines: Sequence[TextLine]) -> bytes:
    """The title and the lines as one JSON object."""
    return msgspec.json.encode({"run": title, "lines": [asdict(line) for line in lines]})


def write_text_report(folder: Path, title: str, lines: Sequence[TextLine]) -> list[Path]:
    """Writes `table.md` and `summary.json`, each atomically."""
    write_bytes(folder / "table.md", text_markdown(lines, title).encode())
    write_bytes(folder / "summary.json", msgspec.json.format(text_json(title, lines), indent=2) + b"\n")
    return [folder / "table.md", folder / "summary.json"]
