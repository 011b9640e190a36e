"""`make bench-reuse`: the first token of a second question about pictures, against that of the first question.

One process and one scheduler; the first and the second question take turns, each pair about pictures of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from make_engine import engine_of
from PIL import Image

from vlkv import Engine, Question
from vlkv.scheduler import Scheduler

WORDS = ("what", "is", "the", "total", "of", "this", "form", "and", "which", "date", "does", "it", "have")


def question(rng: np.random.Generator, pictures: Sequence[Any], policy: str) -> Question:
    """Ten words about pictures."""
    return Question(" ".join(rng.choice(WORDS, 10)), pictures, policy=policy, max_new_tokens=1)


def first(scheduler: Scheduler, asked: Question) -> tuple[float, float, int, int]:
    """Seconds until the first token, processor seconds, tokens of the prompt, and how many of them were reused."""
    before = process_time()
    ticket = scheduler.submit(asked)
    result = ticket.wait()
    assert ticket.first_token is not None
    spent = process_time() - before
    return ticket.first_token - ticket.submitted, spent, result.prompt_tokens, result.cached_tokens


def measure(engine: Engine, policy: str, count: int, repeat: int) -> dict[str, Any]:
    """Medians over pairs of questions."""
    rng = np.random.default_rng(0)
    pairs = []
    with engine.scheduler(slots=4, memory=4 << 30) as scheduler:
        for _ in range(repeat + 1):
            noise = rng.integers(0, 256, (count, 21, 21, 3), np.uint8)
            pictures = [Image.fromarray(one).resize((640, 640)) for one in noise]
            one, busy, tokens, _ = first(scheduler, question(rng, pictures, policy))
            two, less, _, reused = first(scheduler, question(rng, pictures, policy))
            pairs.append((one, two, busy, less, tokens, reused))
    ones, twos, busy, less, tokens, reused = (statistics.median(one) for one in zip(*pairs[1:], strict=True))
    ratio = statistics.median(two / one for one, two, *_ in pairs[1:])
    return {
        "policy": policy,
        "prompt tokens": int(tokens),
        "reused": int(reused),
        "first, ms": ones * 1e3,
        "second, ms": twos * 1e3,
        "ratio": ratio,
        "processor, first, ms": busy * 1e3,
        "processor, second, ms": less * 1e3,
        "processor ratio": statistics.median(pair[3] / pair[2] for pair in pairs[1:]),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="150m")
    parser.add_argument("--pictures", default="1,5", help="how many a question has, comma-separated")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--policies", default="shared-question,vl-cache,full")
    arguments = parser.parse_args()
    engine = engine_of(arguments.size, arguments.output)
    rows = []
    for count in arguments.pictures.split(","):
        for policy in arguments.policies.split(","):
            row = measure(engine, policy, int(count), arguments.repeat)
            if not rows:
                print("| " + " | ".join(row) + " |\n|" + " --- |" * len(row))
            cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
            print("| " + " | ".join(cells) + " |", flush=True)
            rows.append(row)
    (arguments.output / f"reuse-{arguments.size}.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
