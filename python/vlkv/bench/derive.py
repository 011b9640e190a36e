"""Figures derived from runs: medians, byte floors, ratios of pairs, and the bound of Amdahl's law.

Times are in milliseconds, memory in bytes, shares and ratios are fractions. Tokens per second are those of the whole
batch: while it decodes, and from the prompts to the last token. None: a program does not report it.
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
    """The figures of one arm in one cell; `weights` is the bytes that each decode step reads beside the cache."""
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
        "vision_ms": _part_ms(runs, lambda run: run.vision),
        "prefill_ms": _part_ms(runs, lambda run: run.prefill),
        "compress_ms": _part_ms(runs, lambda run: run.compress) if any(run.prefill for run in runs) else None,
        "token_ms": median(median(run.steps) for run in runs) * MS,
        "token_p95_ms": float(np.percentile(steps, 95)),
        "tokens_per_second": cell.batch / median(median(run.steps) for run in runs),
        "whole_tokens_per_second": cell.batch * cell.new_tokens / median(run.whole for run in runs),
        "floor_ms": median(floors) * MS if floors else None,
        "over_floor": median(over) if floors else None,
        "whole_ms": median(run.whole for run in runs) * MS,
        "cache_bytes": max(run.cache_bytes for run in runs) or None,
        "peak_bytes": max(run.peak_bytes for run in runs) or None,
        "bandwidth": median(sum(run.bandwidth) / 2 for run in runs) if any(runs[0].bandwidth) else None,
    }


def floor(run: Run, weights: int) -> float:
    """The seconds to read the weights and the kept cache once, at the bandwidth measured around the run."""
    return (weights + run.read_bytes) / (sum(run.bandwidth) / 2)


def ratios(cell: Cell, label: str, other: str) -> Row:
    """The speedup of `label` over `other`: medians over pairs of runs of the same turn."""
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
    """The end-to-end speedup over the full cache, beside its bound.

    In the full cache's run the first token takes the share 1 - d and decoding d. With decoding s times faster and
    compression free of cost, the speedup would be 1 / (1 - d + d / s). Medians over pairs.
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


def _part_ms(runs: Sequence[Run], part: Callable[[Run], float]) -> float | None:
    """The milliseconds of a part of the first token's time; None if no run reports parts."""
    return median(part(run) for run in runs) * MS if any(run.prefill for run in runs) else None


def _same(pairs: Sequence[tuple[Run, Run]]) -> float | None:
    """The share of answer tokens that agree, position by position; None if a program reports no tokens."""
    hits = [
        mine == theirs
        for a, b in pairs
        for ours, others in zip(b.tokens, a.tokens, strict=False)
        for mine, theirs in zip(ours, others, strict=False)
    ]
    return sum(hits) / len(hits) if hits else None
