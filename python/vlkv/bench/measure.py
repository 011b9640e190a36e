"""The runs of a benchmark, by turns, so that what the machine does meanwhile meets all arms alike."""

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
"""Gives the read bandwidth at this moment, bytes a second."""


@dataclass
class Cell:
    """One prompt length, batch size and length of answers: runs by the arm's label, the same number of each."""

    length: int
    batch: int
    new_tokens: int
    runs: dict[str, list[Run]] = field(default_factory=dict)


@dataclass
class Measured:
    """Everything that was measured; `failed` says why an arm stopped."""

    cells: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def measure(
    settings: Settings,
    manifest: Manifest,
    arms: Sequence[Arm],
    probe: Probe,
    told: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Runs all arms: each once on the shortest prompt to warm up, then `repeat` times on each cell, by turns.

    An arm that fails (a peer: `BenchError`) is left out of what follows, and its runs of that cell are dropped.
    """
    measured = Measured()
    shortest = make_prompts(manifest, min(settings.lengths), 1)
    for arm in arms:
        told(f"warming up: {arm.label}")
        _tried(arm, measured, shortest, WARM_TOKENS)
    for batch in settings.batches:
        for length in settings.lengths:
            runs: dict[str, list[Run]] = {}
            for turn in range(settings.repeat):
                asked = make_prompts(manifest, length, batch, turn)
                for arm in arms:
                    if arm.label in measured.failed:
                        continue
                    told(
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
    """The run; a peer's failure is noted. This engine's own is not caught."""
    try:
        return arm.run(asked, new_tokens)
    except BenchError as error:
        if arm.own:
            raise
        measured.failed[arm.label] = str(error)
        return None
