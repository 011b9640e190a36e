"""Summarises records, one line per setting: means, intervals, and kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlkv.eval.metrics import Mean, average, proportion
from vlkv.eval.records import Record
from vlkv.generation.forced import perplexity


@dataclass(frozen=True)
class Line:
    """One setting's results.

    Fields:
        label, policy, keep, budget: the setting.
        samples: the number of samples.
        exact: the share of answers that equal the expected answer, with Wilson's interval.
        similarity: 1 - edit distance / length, with a bootstrap interval.
        perplexity: the perplexity of the full cache's answer under teacher forcing; None if it was not measured.
        agreement: the share of these tokens that are also this setting's first choice, as a mean over samples.
        kept: the share of the prompt's cache that was kept.
        layers: the mean number of tokens kept, per layer.
        read: see `vlkv.eval.records`, as a mean; None if nothing was recalled.
        hit, mass: see `vlkv.eval.hits`; None if they were not measured.
    """

    label: str
    policy: str
    keep: str
    budget: float
    samples: int
    exact: Mean
    similarity: Mean
    perplexity: float | None
    agreement: Mean | None
    kept: float
    layers: tuple[float, ...]
    hit: float | None
    mass: float | None
    read: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


def summarize(records: Sequence[Record]) -> list[Line]:
    """One line per setting, in the order of their first records."""
    groups: dict[tuple[str, str, str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.policy, record.digest, record.keep, record.budget), []).append(record)
    return [_line(group) for group in groups.values()]


def _line(group: Sequence[Record]) -> Line:
    first = group[0]
    tokens = sum(record.tokens for record in group)
    agreed = [record.agreed / record.tokens for record in group if record.tokens]
    hits = [record.hit for record in group if record.hit is not None]
    mass = [record.mass for record in group if record.mass is not None]
    read = [record.read for record in group if record.read is not None]
    layers = len(first.kept)
    return Line(
        label=f"{first.policy}, {first.keep}" if first.keep else first.policy,
        policy=first.policy,
        keep=first.keep,
        budget=first.budget,
        samples=len(group),
        exact=proportion([record.exact for record in group]),
        similarity=average([record.similarity for record in group]),
        perplexity=perplexity(sum(record.loss for record in group), tokens) if tokens else None,
        agreement=average(agreed) if agreed else None,
        kept=sum(sum(record.kept) / (layers * record.prompt_tokens) for record in group) / len(group),
        layers=tuple(sum(record.kept[layer] for record in group) / len(group) for layer in range(layers)),
        hit=sum(hits) / len(hits) if hits else None,
        mass=sum(mass) / len(mass) if mass else None,
        read=sum(read) / len(read) if read else None,
    )
