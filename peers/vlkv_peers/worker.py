"""The protocol of a peer: one JSON object per line, from standard input to standard output.

    {"load": {"checkpoint": FOLDER, "threads": N, "mode": TEXT, "folder": FOLDER}}     -> {"versions": {NAME: VERSION}}
    {"run": {"token_ids": [[...]], "pixels": FILE.npy, "pictures": [FILE.png], "texts": [TEXT], "new_tokens": N}}
        -> {"first": S, "steps": [S], "whole": S, "cache_bytes": N, "tokens": [[...]]}

An error is answered with {"error": TEXT}, and the peer waits for the next line. It ends when the input ends. Output of
libraries goes to standard error.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

RESERVE = 2 << 30
"""Bytes of memory that a peer leaves to other processes."""


class Peer(Protocol):
    """A loaded model."""

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers the prompts."""
        ...


def serve(load: Callable[[dict[str, Any]], Peer], packages: tuple[str, ...]) -> None:
    """Answers lines until the input ends; `load` makes the model, and the versions of `packages` are reported."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        try:
            message = json.loads(line)
            if "load" in message:
                leave(RESERVE)
                peer = load(message["load"])
                answer: dict[str, Any] = {"versions": versions(packages)}
            elif peer is None:
                raise RuntimeError("nothing is loaded")
            else:
                answer = peer.run(message["run"])
        except Exception as error:
            lines = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]}
            sys.excepthook(type(error), error, error.__traceback__)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def leave(reserve: int) -> None:
    """Limits this process to the available memory minus `reserve` bytes, so that it fails instead of the machine."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with Path("/proc/meminfo").open() as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (max(free - reserve, free // 2),) * 2)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def fingerprint(checkpoint: Path, *options: str) -> str:
    """A name for what is converted of a checkpoint: of its path, options, and the weights' names, times and sizes."""
    files = sorted(checkpoint.glob("*.safetensors"))
    stats = (f"{path.name} {path.stat().st_mtime_ns} {path.stat().st_size}" for path in files)
    return hashlib.sha256("\n".join([str(checkpoint), *options, *stats]).encode()).hexdigest()[:16]


def cores(threads: int) -> int:
    """The number of threads; 0 stands for the cores that this process may use."""
    return threads or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
