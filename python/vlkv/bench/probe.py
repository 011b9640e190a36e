"""Measures the machine's current read bandwidth and the process's peak memory."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from vlkv.ops.native import native

PROBE_BYTES = 256 << 20
PASSES = 5


class Bandwidth:
    """Reads `size` bytes, far more than processor caches hold, with as many threads as the engine (0: all cores)."""

    def __init__(self, threads: int = 0, size: int = PROBE_BYTES) -> None:
        self._words = np.ones(size // 4, np.uint32)
        self._read, self._threads = native().read_words, threads

    def __call__(self) -> float:
        """Bytes per second, the best of a few passes, so that a byte floor is the lowest possible time."""
        best = float("inf")
        for _ in range(PASSES):
            start = perf_counter()
            self._read(self._words, self._threads)
            best = min(best, perf_counter() - start)
        return self._words.nbytes / best


class Peak:
    """A process's peak resident memory since `reset`, or since its start if the system can't reset it."""

    def __init__(self, process: int | None = None) -> None:
        self._folder = Path(f"/proc/{'self' if process is None else process}")

    def reset(self) -> None:
        """Resets the peak (Linux: writes 5 to `clear_refs`)."""
        try:
            (self._folder / "clear_refs").write_text("5")
        except OSError:
            return

    def bytes(self) -> int:
        """The peak in bytes; 0 if the system does not report it."""
        try:
            lines = (self._folder / "status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
