"""`make bench-memory`: counts concurrent requests with 4k-token prompts in the same memory, full cache against a tenth.

Each policy runs in a process of its own. The process first answers one short request, whose peak memory is the
baseline. Then it asks a scheduler for more answers than the stated memory holds, waits until all have ended, and
reads its own peak (VmHWM). Settings are the defaults.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from make_engine import engine_of

from vlkv import Question
from vlkv.scheduler.worker import SCHEDULED_CHUNK

PROMPT = 4096
NEW = 384
"""Answers are so long that the first still runs when all others that fit have begun."""
REQUESTS = {"full": 16, "vl-cache": 64}
"""More than fit into 512 MiB, so that prompts are prefilled while all other lanes are full: the peak is seen then."""


def peak() -> int:
    """Returns the peak resident bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def arm(size: str, folder: Path, policy: str, memory: int, requests: int, chunk: int) -> dict[str, float]:
    """Requests more concurrent answers than the memory holds. Returns how many ran at once and the memory they took."""
    engine = engine_of(size, folder)
    engine.generate("w1 w2 w3", policy=policy, max_new_tokens=4, raw=True)
    before = peak()
    with engine.scheduler(memory=memory, queue=requests, chunk=chunk) as scheduler:
        tickets = []
        for number in range(requests):
            words = " ".join(f"w{(number * 37 + place) % 15000}" for place in range(PROMPT - 1))
            tickets.append(scheduler.submit(Question(words, policy=policy, max_new_tokens=NEW, raw=True)))
        results = [ticket.wait() for ticket in tickets]
    together = max(
        sum(a.started <= b.first_token <= a.ended for a in tickets) for b in tickets
    )  # the most answers that were alive when some answer got its first token
    return {
        "policy": policy,
        "prompt_tokens": results[0].prompt_tokens,
        "together": together,
        "planned_mib": memory / 2**20,
        "baseline_mib": before / 2**20,
        "peak_mib": peak() / 2**20,
    }


def main() -> int:
    """Runs both policies and prints a table. Returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="20m")
    parser.add_argument("--memory", type=int, default=512, help="MiB for caches")
    parser.add_argument("--chunk", type=int, default=SCHEDULED_CHUNK, help="tokens of a part, at most")
    parser.add_argument("--arm", choices=tuple(REQUESTS))
    given = parser.parse_args()
    if given.arm:
        memory, requests = given.memory << 20, REQUESTS[given.arm]
        print(json.dumps(arm(given.size, given.output, given.arm, memory, requests, given.chunk)))
        return 0
    engine_of(given.size, given.output)
    rows = []
    for policy in REQUESTS:
        command = [sys.executable, __file__, "--arm", policy, "-o", str(given.output)]
        command += ["--size", given.size, "--memory", str(given.memory), "--chunk", str(given.chunk)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    full, small = rows
    print(
        "| policy | prompt tokens | at once | planned for caches, MiB | peak over baseline, MiB | process peak, MiB |"
    )
    print("|" + " --- |" * 6)
    for row in rows:
        grown = row["peak_mib"] - row["baseline_mib"]
        print(
            f"| {row['policy']} | {row['prompt_tokens']} | {row['together']} | {row['planned_mib']:.0f} | "
            f"{grown:.0f} | {row['peak_mib']:.0f} |"
        )
    ratio = small["together"] / full["together"]
    equal = ratio * full["peak_mib"] / small["peak_mib"]
    print(
        f"{ratio:.2f} times as many in caches of {given.memory} MiB, {equal:.2f} times for equal process peaks"
    )
    (given.output / "concurrency.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(equal < 6)


if __name__ == "__main__":
    sys.exit(main())
