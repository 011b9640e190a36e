"""`make bench`: prefill, compress and decode per token, full cache and 10%, as ratios in one run.

Random weights of real widths (`make_checkpoint.py`), a picture of 576 tokens, 32 tokens of question after it. Runs of
the two policies alternate; every figure is the median over the runs, a decode figure the median over steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import make_checkpoint
import numpy as np
import onnxruntime
from PIL import Image
from rich.console import Console
from rich.progress import track

from vlkv import Engine, Result
from vlkv.export.directory import export_checkpoint
from vlkv.export.engine import build_engine

QUESTION = 32
FIXED = 160


@dataclass
class Series:
    """What was measured of one prompt length under one policy. Milliseconds."""

    prefill: list[float] = field(default_factory=list)
    compress: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    cache_bytes: int = 0

    def add(self, result: Result, steps: list[float]) -> None:
        """Adds one answer; `steps` are the seconds of its decode steps."""
        self.prefill.append(result.seconds.prefill * 1e3)
        self.compress.append(result.seconds.compress * 1e3)
        self.token.append(median(steps) * 1e3)
        self.cache_bytes = result.cache_bytes


def engine_of(size: str, folder: Path) -> Engine:
    """The engine of a benchmark checkpoint, made on first use."""
    engine = folder / f"{size}-engine"
    if not (engine / "manifest.json").exists():
        make_checkpoint.make(size, folder / size)
        export_checkpoint(folder / size, folder / f"{size}-graphs")
        build_engine(folder / f"{size}-graphs", engine)
    return Engine.load(engine, verify=False)


def ask(
    engine: Engine, length: int, tokens: int, policy: str, budget: float | None
) -> tuple[Result, list[float]]:
    """One answer to a prompt of `length` tokens, and the seconds between its pieces of text."""
    before = max(0, length - engine.manifest.image.tokens_per_image - QUESTION)
    words = [f"w{number}" for number in range(before)]
    question = [f"w{number}" for number in range(QUESTION)]
    prompt = " ".join([*words, "<image>", *question])
    picture = np.random.default_rng(length).integers(0, 256, (336, 336, 3), np.uint8)
    stream = engine.stream(
        prompt, [Image.fromarray(picture)], policy=policy, budget=budget, max_new_tokens=tokens, raw=True
    )
    marks = [time.perf_counter() for _ in stream]
    return stream.result, [later - earlier for earlier, later in pairwise(marks[1:])]


def main() -> None:
    """Measures and prints; `-o` also writes `bench.json` and `bench.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", choices=("20m", "150m"), default="150m")
    parser.add_argument("--prompt-tokens", default="640,2k,4k,8k,16k")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    lengths = [int(text.replace("k", "000")) for text in arguments.prompt_tokens.split(",")]
    engine = engine_of(arguments.size, arguments.output)
    ask(engine, lengths[0], 8, "full", None)
    rows = []
    for length in track(lengths, "measuring", console=Console(stderr=True), transient=True):
        full, small, fixed = Series(), Series(), Series()
        for _ in range(arguments.repeat):
            full.add(*ask(engine, length, arguments.new_tokens, "full", None))
            small.add(*ask(engine, length, arguments.new_tokens, "vl-cache", 0.1))
            fixed.add(*ask(engine, length, arguments.new_tokens, "vl-cache", min(1.0, FIXED / length)))
        rows.append(row(length, full, small, fixed))
    report(rows, arguments.output, engine)


def row(length: int, full: Series, small: Series, fixed: Series) -> dict[str, float]:
    """One line of the table. Ratios are medians of pairs."""
    pairs = list(zip(full.token, small.token, strict=True))
    return {
        "prompt tokens": length,
        "prefill ms": median(small.prefill),
        "compress ms": median(small.compress),
        "compress / prefill": median(c / p for c, p in zip(small.compress, small.prefill, strict=True)),
        "full ms/token": median(full.token),
        "10% ms/token": median(small.token),
        "decode speed-up": median(a / b for a, b in pairs),
        f"{FIXED} kept ms/token": median(fixed.token),
        "cache bytes / full": small.cache_bytes / full.cache_bytes,
    }


def report(rows: list[dict[str, float]], folder: Path, engine: Engine) -> None:
    """Prints the Markdown table and writes it beside a JSON file with the environment."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(f"{line[name]:.4g}" for name in names) + " |" for line in rows]
    environment = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "text model": f"{engine.manifest.text.layers} layers, hidden {engine.manifest.text.hidden}",
    }
    table = "\n".join(lines)
    (folder / "bench.md").write_text(table + "\n")
    (folder / "bench.json").write_text(
        json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n"
    )
    print(table)
    print(", ".join(f"{name}: {value}" for name, value in environment.items()))


if __name__ == "__main__":
    main()
