"""What follows from runs: medians, byte floors, ratios of pairs, and what Amdahl's law allows.

Times are in milliseconds, memory in bytes, shares and ratios as they are. None stands for what a program does not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from vlkv.bench.measure import Cell
from vlkv.bench.timing import Run

MS = 1e3
Row = dict[str, Any]


def row(cell: Cell, label: str, weights: int | None) -> Row:
    """One arm of one cell; `weights` are the bytes that each of its decode steps reads beside the cache."""
    runs = cell.runs[label]
    steps = [step * MS for run in runs for step in run.steps]
    floors = [floor(run, weights) for run in runs] if weights else []
    over = [median(run.steps) / bound for run, bound in zip(runs, floors, strict=False)]
    return {
        "prompt_tokens": cell.length,
        "batch": cell.batch,
        "new_tokens": cell.new_tokens,
        "arm": label,
        "runs": len(runs),
        "first_token_ms": median(run.first for run in runs) * MS,
        "vision_ms": _told(runs, lambda run: run.vision),
        "prefill_ms": _told(runs, lambda run: run.prefill),
        "compress_ms": _told(runs, lambda run: run.compress) if any(run.prefill for run in runs) else None,
        "token_ms": median(median(run.steps) for run in runs) * MS,
        "token_p95_ms": float(np.percentile(steps, 95)),
        "floor_ms": median(floors) * MS if floors else None,
        "over_floor": median(over) if floors else None,
        "whole_ms": median(run.whole for run in runs) * MS,
        "cache_bytes": max(run.cache_bytes for run in runs) or None,
        "peak_bytes": max(run.peak_bytes for run in runs) or None,
        "bandwidth": median(sum(run.bandwidth) / 2 for run in runs) if any(runs[0].bandwidth) else None,
    }


def floor(run: Run, weights: int) -> float:
    """Seconds that reading the weights and the kept cache once takes, by the bandwidth around the run."""
    return (weights + run.read_bytes) / (sum(run.bandwidth) / 2)


def ratios(cell: Cell, label: str, other: str) -> Row:
    """How many times faster `label` is than `other`: medians of pairs, runs of the same turn."""
    pairs = list(zip(cell.runs[other], cell.runs[label], strict=True))
    return {
        "prompt_tokens": cell.length,
        "batch": cell.batch,
        "new_tokens": cell.new_tokens,
        "arm": label,
        "against": other,
        "first_token": median(a.first / b.first for a, b in pairs),
        "decode": median(median(a.steps) / median(b.steps) for a, b in pairs),
        "whole": median(a.whole / b.whole for a, b in pairs),
        "same_tokens": _same(pairs),
    }


def amdahl(cell: Cell, label: str, full: str) -> Row:
    """The end-to-end gain over the full cache beside its bound.

    With the shares of the full cache's run, first token 1 - d and decoding d, and decoding s times faster, no more than
    1 / (1 - d + d / s) is possible: compression for nothing. Medians of pairs.
    """
    pairs = list(zip(cell.runs[full], cell.runs[label], strict=True))
    shares = [sum(a.steps) / a.whole for a, _ in pairs]
    speeds = [sum(a.steps) / sum(b.steps) for a, b in pairs]
    bounds = [1 / (1 - d + d / s) for d, s in zip(shares, speeds, strict=True)]
    gains = [a.whole / b.whole for a, b in pairs]
    return {
        "prompt_tokens": cell.length,
        "batch": cell.batch,
        "new_tokens": cell.new_tokens,
        "arm": label,
        "first_token_share": 1 - median(shares),
        "decode_share": median(shares),
        "decode_speed_up": median(speeds),
        "bound": median(bounds),
        "gain": median(gains),
        "gain_of_bound": median(gain / bound for gain, bound in zip(gains, bounds, strict=True)),
    }


def _told(runs: Sequence[Run], part: Callable[[Run], float]) -> float | None:
    """Milliseconds of a part of the first token's time; None where no run tells any part."""
    return median(part(run) for run in runs) * MS if any(run.prefill for run in runs) else None


def _same(pairs: Sequence[tuple[Run, Run]]) -> float | None:
    """The share of answer tokens that agree, place by place; None where a program tells no tokens."""
    hits = [
        mine == theirs
        for a, b in pairs
        for ours, others in zip(b.tokens, a.tokens, strict=False)
        for mine, theirs in zip(ours, others, strict=False)
    ]
    return sum(hits) / len(hits) if hits else None
