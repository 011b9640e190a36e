"""`make bench-memory`: how many requests of 4k-token prompts run at once in the same memory, whole cache and a tenth.

For each, a process of its own asks a scheduler at its defaults for more answers at once than the stated memory
holds, and reads its own peak (VmHWM) afterwards; before, it has answered one short request, whose peak is the
baseline. Answers are long, so that those that fit run together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from make_engine import engine_of

from vlkv import Question

PROMPT = 4096
NEW = 384
"""Long enough that an answer still runs when all others that fit have begun."""


def peak() -> int:
    """The process's own peak resident bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def arm(size: str, folder: Path, policy: str, memory: int, requests: int) -> dict[str, float]:
    """Asks for more answers at once than the memory holds; how many ran, and what it took. All else is the default."""
    engine = engine_of(size, folder)
    engine.generate("w1 w2 w3", policy=policy, max_new_tokens=4, raw=True)
    before = peak()
    with engine.scheduler(memory=memory, queue=requests, chunk=PROMPT) as scheduler:
        tickets = []
        for number in range(requests):
            words = " ".join(f"w{(number * 37 + place) % 15000}" for place in range(PROMPT - 1))
            tickets.append(scheduler.submit(Question(words, policy=policy, max_new_tokens=NEW, raw=True)))
        results = [ticket.wait() for ticket in tickets]
    together = max(
        sum(a.started <= b.first_token <= a.ended for a in tickets) for b in tickets
    )  # answers alive at the moment of some first token
    return {
        "policy": policy,
        "prompt_tokens": results[0].prompt_tokens,
        "together": together,
        "planned_mib": memory / 2**20,
        "baseline_mib": before / 2**20,
        "peak_mib": peak() / 2**20,
    }


def main() -> int:
    """Runs both and prints; 1 where a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="20m")
    parser.add_argument("--memory", type=int, default=512, help="MiB for caches")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--arm", choices=("full", "vl-cache"))
    arguments = parser.parse_args()
    if arguments.arm:
        print(
            json.dumps(
                arm(
                    arguments.size,
                    arguments.output,
                    arguments.arm,
                    arguments.memory << 20,
                    arguments.requests,
                )
            )
        )
        return 0
    engine_of(arguments.size, arguments.output)
    rows = []
    for policy in ("full", "vl-cache"):
        command = [sys.executable, __file__, "--arm", policy, "-o", str(arguments.output)]
        command += ["--size", arguments.size, "--memory", str(arguments.memory)]
        command += ["--requests", str(arguments.requests if policy != "full" else 16)]
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
    print(f"{ratio:.2f} times as many in caches of {arguments.memory} MiB")
    (arguments.output / "concurrency.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(ratio < 6 or small["peak_mib"] > 1.1 * full["peak_mib"])


if __name__ == "__main__":
    sys.exit(main())
