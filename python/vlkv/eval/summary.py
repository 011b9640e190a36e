"""Records to a line a setting: means, intervals, and what was kept."""

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
        samples: how many.
        exact: share of answers that are right to the character, with Wilson's interval.
        similarity: 1 - edit distance / length, with a bootstrap interval.
        perplexity: of the full cache's own answer, given token by token; None where it was not measured.
        agreement: share of those tokens that are the first choice here too, a mean over samples.
        kept: share of the prompt's cache that was kept.
        layers: mean number of tokens kept, per layer.
        hit, mass: see `vlkv.eval.hits`; None where they were not measured.
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

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def summarize(records: Sequence[Record]) -> list[Line]:
    """A line for each setting, in the order of their first records."""
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
    )
