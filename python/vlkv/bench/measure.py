"""The runs of a benchmark: arms take turns, so that changes of the machine's load affect all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vlkv.bench.prompts import Asked, make_prompts
from vlkv.bench.settings import Settings
from vlkv.bench.timing import Arm, Run
from vlkv.errors import BenchError
from vlkv.storage.manifest import Manifest

WARM_TOKENS = 4


Probe = Callable[[], float]
"""Measures the current read bandwidth, in bytes per second."""


@dataclass
class Cell:
    """One prompt length, batch size and length of answers: runs by the arm's label, equally many for each arm."""

    length: int
    batch: int
    new_tokens: int
    runs: dict[str, list[Run]] = field(default_factory=dict)


@dataclass
class Measured:
    """All measurements; `failed` holds the reason why an arm stopped."""

    cells: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def measure(
    settings: Settings,
    manifest: Manifest,
    arms: Sequence[Arm],
    probe: Probe,
    progress: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Runs all arms: each once on the shortest prompt to warm up, then `repeat` times on each cell, in turn.

    A peer that fails with `BenchError` is excluded from later runs, and its runs of that cell are dropped.
    """
    measured = Measured()
    shortest = make_prompts(manifest, min(settings.lengths), 1)
    for arm in arms:
        progress(f"warming up: {arm.label}")
        _tried(arm, measured, shortest, WARM_TOKENS)
    for batch in settings.batches:
        for length in settings.lengths:
            runs: dict[str, list[Run]] = {}
            for turn in range(settings.repeat):
                asked = make_prompts(manifest, length, batch, turn)
                for arm in arms:
                    if arm.label in measured.failed:
                        continue
                    progress(
                        f"{length} prompt tokens, batch {batch}, {arm.label}, {turn + 1} of {settings.repeat}"
                    )
                    before = probe()
                    run = _tried(arm, measured, asked, settings.longest)
                    if run is None:
                        runs.pop(arm.label, None)
                        continue
                    run.bandwidth = before, probe()
                    runs.setdefault(arm.label, []).append(run)
            for count in settings.new_tokens:
                begun = {label: [run.beginning(count) for run in found] for label, found in runs.items()}
                measured.cells.append(Cell(length, batch, count, begun))
    return measured


def _tried(arm: Arm, measured: Measured, asked: Sequence[Asked], new_tokens: int) -> Run | None:
    """Runs an arm. A peer's failure is recorded; a failure of this engine is raised."""
    try:
        return arm.run(asked, new_tokens)
    except BenchError as error:
        if arm.own:
            raise
        measured.failed[arm.label] = str(error)
        return None
