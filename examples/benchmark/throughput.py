"""`make bench-serving`: measures 16 requests one at a time and 16 at once, and the time of the scheduler itself.

Each request has a picture (576 image tokens) and 64 text tokens, gets 128 new tokens, and keeps a tenth of the cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
from make_engine import engine_of
from PIL import Image

from vlkv import Engine, Question
from vlkv.scheduler import Stats

REQUESTS = 16
TEXT = 64


def questions(new_tokens: int) -> list[Question]:
    """Makes the requests. No two are alike."""
    found = []
    for number in range(REQUESTS):
        noise = np.random.default_rng(number).integers(0, 256, (336, 336, 3), np.uint8)
        words = " ".join(f"w{(number * 31 + place) % 15000}" for place in range(TEXT))
        found.append(
            Question(f"<image> {words}", [Image.fromarray(noise)], max_new_tokens=new_tokens, raw=True)
        )
    return found


def run(engine: Engine, slots: int, asked: list[Question]) -> tuple[float, Stats]:
    """Returns the seconds for all requests, and the counters."""
    with engine.scheduler(slots=slots, queue=REQUESTS) as scheduler:
        start = perf_counter()
        tickets = [scheduler.submit(question) for question in asked]
        for ticket in tickets:
            ticket.wait()
        return perf_counter() - start, scheduler.stats()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="150m")
    parser.add_argument("--new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    engine = engine_of(arguments.size, arguments.output)
    asked = questions(arguments.new_tokens)
    run(engine, 2, asked[:2])
    rows = []
    for slots in (1, REQUESTS):
        seconds, stats = run(engine, slots, asked)
        rows.append(
            {
                "at once": slots,
                "seconds": seconds,
                "tokens/s": stats.generated_tokens / seconds,
                "prefill s": stats.prefill_seconds,
                "steps": stats.steps,
                "answers a step": stats.rows / stats.steps,
                "step ms": stats.step_seconds / stats.steps * 1e3,
                "choosing tokens ms": stats.pick_seconds / stats.steps * 1e3,
                "scheduler ms": stats.own_seconds / stats.steps * 1e3,
                "scheduler / step": stats.own_seconds / stats.step_seconds,
            }
        )
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    print(f"{rows[0]['seconds'] / rows[1]['seconds']:.2f} times the throughput of one at a time")
    (arguments.output / "throughput.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
