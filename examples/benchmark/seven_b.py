"""A 7B on two cores: LLaVA-1.5-7B's sizes with random weights, built in 4 bits and asked about a picture.

python examples/benchmark/seven_b.py -o out/7b

Writes the checkpoint (14 GB in shards), exports it, builds the engine, removes the checkpoint, asks a question about a
picture by `vlkv run`, and measures by `vlkv bench`. Each step is a process of its own. The table holds its seconds, its
peak of memory that belongs to it alone, and its peak of resident memory, which counts pages of mapped files too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import make_checkpoint
import numpy as np
from PIL import Image

from vlkv.bench.report import table

GIB = 1 << 30
EVERY = 0.05
"""Seconds between two looks at a process's memory."""


@dataclass
class Step:
    """A finished process: its command's name, seconds, and peaks of memory in bytes; `own` is of anonymous pages."""

    name: str
    seconds: float
    own: int
    resident: int


def status(process: int) -> dict[str, int]:
    """Returns the sizes in `/proc/PROCESS/status` in bytes, none if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = (line.split() for line in lines if line.endswith("kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in sizes}


def watched(name: str, command: list[str]) -> Step:
    """Runs a command and watches its memory. Exits with its code if it fails."""
    print(f"{name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    start, own, resident = time.perf_counter(), 0, 0
    process = subprocess.Popen(command, stdout=sys.stderr)
    while process.poll() is None:
        now = status(process.pid)
        own = max(own, now.get("RssAnon", 0) + now.get("RssShmem", 0))
        resident = max(resident, now.get("VmHWM", 0))
        time.sleep(EVERY)
    if process.returncode:
        sys.exit(process.returncode)
    step = Step(name, time.perf_counter() - start, own, resident)
    print(f"{name}: {step.seconds:.0f} s, {own / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return step


def build(size: str, folder: Path, options: list[str], keep: bool) -> list[Step]:
    """Writes checkpoint, graphs and engine, and returns the steps. A folder with an engine is left as it is."""
    engine, checkpoint, graphs = folder / "engine", folder / "checkpoint", folder / "graphs"
    if (engine / "manifest.json").exists():
        return []
    own = Path(make_checkpoint.__file__)
    cli = [sys.executable, "-m", "vlkv.cli.main"]
    steps = [
        watched("write the checkpoint", [sys.executable, str(own), size, str(checkpoint)]),
        watched("export", [*cli, "export", str(checkpoint), "-o", str(graphs), "--link"]),
        watched("build", [*cli, "build", str(graphs), "-o", str(engine), *options]),
    ]
    if not keep:
        shutil.rmtree(checkpoint)
        shutil.rmtree(graphs)
    return steps


def ask(folder: Path) -> Step:
    """Asks a question about a picture of noise, and returns the step."""
    picture = folder / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (336, 336, 3), np.uint8)
    Image.fromarray(noise).save(picture)
    question = ["--prompt", "<image> w1 w2 w3", "--image", str(picture), "--max-new-tokens", "16"]
    command = [sys.executable, "-m", "vlkv.cli.main", "run", str(folder / "engine"), "--no-verify", *question]
    return watched("answer with 16 tokens, loading included", command)


def main() -> None:
    """Prints the steps and the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="7b-random", choices=make_checkpoint.SIZES)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--kv-dtype", default="float32")
    parser.add_argument("--prompt-precision", help="that of vlkv build, unless its default")
    parser.add_argument("--prompt-tokens", default="640")
    parser.add_argument("--new-tokens", default="32")
    parser.add_argument("--repeat", default="1")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint and the graphs")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--weights", arguments.weights, "--kv-dtype", arguments.kv_dtype]
    if arguments.prompt_precision is not None:
        options += ["--prompt-precision", arguments.prompt_precision]
    steps = [*build(arguments.size, folder, options, arguments.keep), ask(folder)]
    bench = [sys.executable, "-m", "vlkv.cli.main", "bench", str(folder / "engine"), "--no-verify"]
    bench += ["--prompt-tokens", arguments.prompt_tokens, "--new-tokens", arguments.new_tokens]
    bench += ["--repeat", arguments.repeat, "--budget", "1,0.1", "-o", str(folder)]
    steps.append(watched("benchmark", bench))
    head = ["step", "seconds", "own memory GiB", "resident with mapped files GiB"]
    print(table(head, [[step.name, step.seconds, step.own / GIB, step.resident / GIB] for step in steps]))
    rows = json.loads((folder / "bench.json").read_text())["rows"]
    names = ["prompt_tokens", "arm", "first_token_ms", "token_ms", "floor_ms", "over_floor"]
    print(
        "\n"
        + table([name.replace("_", " ") for name in names], [[row[name] for name in names] for row in rows])
    )
    print(f"\nload average of the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
