"""The report of a run: what was called, what was right, what was admitted, and the final ratio."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlkv.storage.files import write_bytes
from vlkv.tune.ratio import Ratio
from vlkv.tune.toolchain import LEVELS

COUNTED = ("calls", "candidates", "correct", "admitted", "compile_seconds", "tokens", "correct_rate")


@dataclass
class FunctionReport:
    """One function. `speedup` is 1 / ratio of fresh pairs at the end, against the source at BASE_FLAGS.

    `by_level` holds calls, candidates, right and admitted ones, compile seconds, tokens and the share of right ones;
    `gates` holds the number of candidates that each gate refused. `elsewhere` is the speedup at other sizes, with its
    interval; None if it was not timed there. `source_seconds` are the compilers' for the source itself.
    """

    name: str
    calls: int = 0
    candidates: int = 0
    correct: int = 0
    admitted: int = 0
    speedup: float = 1.0
    low: float = 1.0
    high: float = 1.0
    best_level: str = "source"
    best_flags: list[str] = field(default_factory=list)
    compile_seconds: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    by_level: dict[str, dict[str, float]] = field(default_factory=dict)
    gates: dict[str, int] = field(default_factory=dict)
    network_cut: bool = False
    elsewhere: tuple[float, float, float] | None = None
    source_seconds: float = 0.0

    @classmethod
    def of(
        cls, name: str, records: list[dict[str, Any]], final: Ratio | None, network_cut: bool
    ) -> FunctionReport:
        """Builds the report from the ledger's records and the final ratio (None: the source itself is the best)."""
        made = cls(name, sum(not record.get("sample") for record in records), network_cut=network_cut)
        gates: Counter[str] = Counter()
        for record in records:
            level = record.get("level") or record.get("agent", "other")
            line = made.by_level.setdefault(
                level,
                dict.fromkeys(COUNTED, 0),
            )
            tokens = record.get("tokens_in", 0) + record.get("tokens_out", 0)
            line["calls"] += not record.get("sample")
            line["candidates"] += "text" in record
            line["correct"] += bool(record.get("correct"))
            line["admitted"] += bool(record.get("admitted"))
            line["compile_seconds"] += record.get("compile_seconds", 0.0)
            line["tokens"] += tokens
            made.candidates += "text" in record
            made.correct += bool(record.get("correct"))
            made.admitted += bool(record.get("admitted"))
            made.compile_seconds += record.get("compile_seconds", 0.0)
            made.seconds += record.get("seconds", 0.0)
            made.tokens += tokens
            line["correct_rate"] = line["correct"] / max(line["candidates"], 1)
            if record.get("gate"):
                gates[record["gate"]] += 1
        made.gates = dict(gates)
        made.by_level = {
            n: made.by_level[n] for n in sorted(made.by_level, key=lambda n: (n not in LEVELS, n))
        }
        if final is not None:
            made.speedup, made.low, made.high = speedup(final)
        return made


def speedup(ratio: Ratio) -> tuple[float, float, float]:
    """Returns a ratio of times as a speedup: its value, and the ends of its interval."""
    return 1 / ratio.value, 1 / ratio.high, 1 / ratio.low


@dataclass
class Report:
    """All functions of a run. Speedups are against the compiler alone; percentiles are over functions."""

    functions: list[FunctionReport]

    def json(self) -> dict[str, Any]:
        """Returns the report as one object."""
        return {
            "functions": [asdict(function) for function in self.functions],
            **summary([function.speedup for function in self.functions]),
            "calls": sum(function.calls for function in self.functions),
            "candidates": sum(function.candidates for function in self.functions),
            "correct": sum(function.correct for function in self.functions),
            "admitted": sum(function.admitted for function in self.functions),
            "compile_seconds": sum(function.compile_seconds for function in self.functions),
            "tokens": sum(function.tokens for function in self.functions),
        }


def summary(speedups: Sequence[float]) -> dict[str, float]:
    """Returns the geometric mean, the median, the 90th percentile and the best of speedups."""
    values = np.array(speedups)
    return {
        "geometric_mean": float(np.exp(np.mean(np.log(values)))),
        "p50": float(np.percentile(values, 50)),
        "p90": float(np.percentile(values, 90)),
        "best": float(values.max()),
    }


def write_record(path: Path, record: Any) -> None:
    """Writes JSON, so that readers see the old content or the whole new one. Raises `EngineError` on failure."""
    write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
