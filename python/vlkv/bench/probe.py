"""What the machine gives at the moment: its read bandwidth, and the process's peak memory."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from vlkv.ops.native import native

PROBE_BYTES = 256 << 20
PASSES = 5


class Bandwidth:
    """A reader of `size` bytes, far more than caches hold, on as many threads as the engine has (0: all cores)."""

    def __init__(self, threads: int = 0, size: int = PROBE_BYTES) -> None:
        self._words = np.ones(size // 4, np.uint32)
        self._read, self._threads = native().read_words, threads

    def __call__(self) -> float:
        """Bytes a second, the best of a few passes: a floor by it is the lowest that this moment allows."""
        best = float("inf")
        for _ in range(PASSES):
            start = perf_counter()
            self._read(self._words, self._threads)
            best = min(best, perf_counter() - start)
        return self._words.nbytes / best


class Peak:
    """A process's peak resident memory since `reset`; since its start where the system can't reset it."""

    def __init__(self, process: int | None = None) -> None:
        self._folder = Path(f"/proc/{'self' if process is None else process}")

    def reset(self) -> None:
        """Begins anew (Linux: writes 5 to `clear_refs`)."""
        try:
            (self._folder / "clear_refs").write_text("5")
        except OSError:
            return

    def bytes(self) -> int:
        """The peak; 0 where the system does not tell."""
        try:
            lines = (self._folder / "status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
