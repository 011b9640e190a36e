"""Plays one trace on several servers with the same checkpoint, one after the other, and prints what clients saw.

python examples/benchmark/servers.py -o out/bench

Each server runs in a process, and the peers in an environment, of its own. `vlkv load` plays a trace: requests arrive
at random times, each with one of a few pictures, a question, and a number of new tokens. llama.cpp has the text model
only. A second trace is for it and the others: in the place of a picture stands a document of as many tokens, a new one
in each request.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from make_engine import make

from vlkv.bench.environments import make_environment, peer_file

VLKV = [sys.executable, "-m", "vlkv.cli.main"]
STOP_SECONDS = 60
OPEN_SECONDS = 600
TITLES = [
    "answered",
    "good answers/s",
    "tokens/s",
    "first token p50, ms",
    "p95",
    "per token p50, ms",
    "p95",
    "peak, MiB",
]
PEERS = {
    "openvino": ("openvino", "openvino_server.py"),
    "llamacpp": ("llamacpp_server", "llamacpp_server.py"),
}
"""Environment and program of each peer."""
PICTURE_TOKENS = 576
"""Of a picture of 336 x 336 pixels."""


def write_trace(target: Path, requests: int, rate: float, pictures: int, new: int, seed: int = 0) -> None:
    """Writes a trace of arrivals at `rate` per second (a Poisson process) with pictures of 336 x 336 pixels.

    With 0 pictures every request has a document of its own instead.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for number, moment in enumerate(np.cumsum(rng.exponential(1 / rate, requests))):
        words = int(rng.integers(8, 40))
        line = {"at": round(float(moment), 3), "max_tokens": new}
        if pictures:
            line |= {"width": 336, "height": 336, "words": words, "image": int(rng.integers(pictures))}
        else:
            line |= {"document": PICTURE_TOKENS + words - 1, "words": 1, "image": 1000 * seed + number}
        lines.append(line)
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(name: str, arguments: argparse.Namespace, port: int) -> list[str]:
    """The command of a server, such as `vlkv:full`."""
    folder, threads = arguments.output, str(arguments.threads)
    engine = str(make(arguments.size, folder))  # and the checkpoint, which the peers read
    checkpoint, peers = str(folder / arguments.size), arguments.peers or folder / "peers"
    program, _, mode = name.partition(":")
    if program == "vlkv":
        options = ["--policy", mode, "--port", str(port), "--threads", threads, "--memory", arguments.memory]
        return [*VLKV, "serve", engine, "--log", "off", *options]
    if program not in PEERS:
        raise SystemExit(f"unknown server {name!r}; known: vlkv:POLICY, openvino:MODE and llamacpp")
    environment, server = PEERS[program]
    place = peers / environment
    python = make_environment(
        place, peer_file(f"{environment}.txt"), lambda text: print(text, file=sys.stderr)
    )
    modes = [mode] if mode else []
    return [str(python), str(peer_file(server)), checkpoint, str(place), *modes, str(port), threads]


def peak(process: int) -> float:
    """MiB of a process's resident memory at its peak (VmHWM)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Waits until the server answers; raises `SystemExit` with its log's last line if it ends before."""
    end = time.monotonic() + OPEN_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise SystemExit(f"the server did not start: {lines[-1] if lines else 'no output'}")


def play(line: list[str], port: int, trace: str, arguments: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Starts a server, sends a few requests to warm it up, plays the trace, and stops it."""
    url = f"http://127.0.0.1:{port}/v1"
    load = [*VLKV, "load", url, "--json", "--most-ttft", str(arguments.most_ttft)]
    load += ["--most-tpot", str(arguments.most_tpot), "--trace"]
    with log.open("wb") as out:
        process = subprocess.Popen(line, stdout=out, stderr=out)
    try:
        wait(process, port, log)
        subprocess.run(
            [*load, arguments.output / f"warm-{trace}.jsonl"], stdout=subprocess.DEVNULL, check=True
        )
        done = subprocess.run(
            [*load, arguments.output / f"{trace}.jsonl"], stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout) | {"peak_mib": peak(process.pid)}
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def row(name: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    times = [
        f"{found[kind][rank] * 1e3:.0f}" if found[kind] else ""
        for kind in ("ttft", "tpot")
        for rank in ("p50", "p95")
    ]
    return [
        name,
        f"{found['answered']} of {found['requests']}",
        f"{found['goodput']:.3f}",
        f"{found['tokens_per_second']:.1f}",
        *times,
        f"{found['peak_mib']:.0f}",
    ]


def main() -> None:
    """Plays both traces on their servers, and prints a table of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="150m")
    parser.add_argument(
        "--servers", default="vlkv:full,openvino:full,vlkv:vl-cache,openvino:evict", help="in this order"
    )
    parser.add_argument(
        "--text-servers",
        default="vlkv:full,llamacpp,openvino:full,vlkv:vl-cache",
        help="for the trace of text",
    )
    parser.add_argument(
        "--peers", type=Path, help="folder of the peers' environments [default: OUTPUT/peers]"
    )
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.8, help="requests per second")
    parser.add_argument("--pictures", type=int, default=8, help="different pictures")
    parser.add_argument("--new", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--memory", default="4GiB", help="caches of vlkv; OpenVINO GenAI's have 4 GiB")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--most-ttft", type=float, default=5.0, help="seconds to the first token of a good answer"
    )
    parser.add_argument(
        "--most-tpot", type=float, default=0.15, help="seconds per later token of a good answer"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    asked = {"pictures": arguments.servers, "text": arguments.text_servers}
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    results: dict[str, dict[str, Any]] = {}
    for trace, names in asked.items():
        pictures = arguments.pictures if trace == "pictures" else 0
        write_trace(
            arguments.output / f"{trace}.jsonl", arguments.requests, arguments.rate, pictures, arguments.new
        )
        write_trace(arguments.output / f"warm-{trace}.jsonl", 2, 10.0, min(1, pictures), 8, seed=1)
        print(f"\n| {trace} | " + " | ".join(TITLES) + " |\n|" + " --- |" * (len(TITLES) + 1), flush=True)
        for name in filter(None, names.split(",")):
            log = arguments.output / f"{trace}-{name.replace(':', '-')}.log"
            line = command(name, arguments, port)
            found = results.setdefault(trace, {})[name] = play(line, port, trace, arguments, log)
            print("| " + " | ".join(row(name, found)) + " |", flush=True)
    (arguments.output / "servers.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
