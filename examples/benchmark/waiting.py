"""`make bench-waiting`: what a long prompt does to others: a short prompt behind it, and an answer that runs.

A prompt of 20 tokens comes 0.1 s after one of 4,000; an answer of 4,000 prompt tokens' time runs beside it. Both are
measured alone too, in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from make_engine import engine_of

from vlkv import Question
from vlkv.scheduler import Scheduler, Ticket

LONG, SHORT = 4000, 20


def question(tokens: int, policy: str, **fields: Any) -> Question:
    """A text prompt of about so many tokens."""
    return Question(" ".join(f"w{n % 15000}" for n in range(tokens - 1)), policy=policy, raw=True, **fields)


def first(scheduler: Scheduler, policy: str) -> float:
    """Seconds until the first token of a short prompt."""
    ticket = scheduler.submit(question(SHORT, policy, max_new_tokens=1))
    ticket.wait()
    assert ticket.first_token is not None
    return ticket.first_token - ticket.submitted


def gaps(ticket: Ticket) -> list[float]:
    """A list that gets the moments of its tokens."""
    moments: list[float] = []
    ticket.listen(lambda _, piece: moments.append(monotonic()))
    return moments


def between(moments: list[float], begin: float, end: float) -> list[float]:
    """Gaps between tokens of that span."""
    inside = [moment for moment in moments if begin <= moment <= end]
    return [after - before for before, after in pairwise(inside)]


def measure(scheduler: Scheduler, policy: str) -> dict[str, float]:
    """One round. Milliseconds."""
    alone = statistics.median(first(scheduler, policy) for _ in range(5))
    long = scheduler.submit(question(LONG, policy, max_new_tokens=1))
    sleep(0.1)
    behind = first(scheduler, policy)
    passed = not long.done
    long.wait()
    assert long.first_token is not None
    whole = long.first_token - long.submitted

    running = scheduler.submit(question(SHORT, policy, max_new_tokens=3900, temperature=2.0, seed=1))
    moments = gaps(running)
    while len(moments) < 50:
        sleep(0.01)
    begin = monotonic()
    long = scheduler.submit(question(LONG, policy, max_new_tokens=1))
    sleep(0.2)
    beside = first(scheduler, policy)
    long.wait()
    end = monotonic()
    running.cancel()
    lone = between(moments, moments[5], begin)
    slowed = between(moments, begin, end)
    return {
        "short alone": alone * 1e3,
        "short behind long": behind * 1e3,
        "passed": float(passed),
        "long alone": whole * 1e3,
        "short behind long, an answer runs": beside * 1e3,
        "long, an answer runs": (end - begin) * 1e3,
        "token alone": statistics.mean(lone) * 1e3,
        "token beside long": statistics.mean(slowed) * 1e3,
        "token beside long, most": max(slowed) * 1e3,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="20m")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--policies", default="vl-cache,h2o,full")
    arguments = parser.parse_args()
    engine = engine_of(arguments.size, arguments.output)
    rows = []
    for policy in arguments.policies.split(","):
        with engine.scheduler(slots=8, memory=4 << 30) as scheduler:
            measure(scheduler, policy)
            found = [measure(scheduler, policy) for _ in range(arguments.repeat)]
        median = {name: statistics.median(one[name] for one in found) for name in found[0]}
        slower = statistics.median(one["token beside long"] / one["token alone"] for one in found)
        rows.append({"policy": policy, **median, "slower": slower})
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print(f"| {row['policy']} | " + " | ".join(f"{v:.4g}" for v in list(row.values())[1:]) + " |")
    (arguments.output / "waiting.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
