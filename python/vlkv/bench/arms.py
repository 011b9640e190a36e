"""Opens the engines of a benchmark, each under every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlkv.bench.graph_bytes import weight_bytes
from vlkv.bench.report import Own
from vlkv.bench.settings import Budget, Settings
from vlkv.bench.timing import EngineArm
from vlkv.engine import Engine
from vlkv.errors import BenchError
from vlkv.storage.files import show
from vlkv.storage.manifest import Manifest

FULL = Budget(1.0)
TUNED = "tuned"
"""The name of an engine that runs with the operators of `vlkv tune`."""


def open_arms(
    engines: Sequence[tuple[str, Path]],
    settings: Settings,
    threads: int,
    verify: bool,
    tuned: Path | None = None,
    device: str = "cpu",
) -> tuple[list[EngineArm], list[Own]]:
    """Returns the arms of named engines (the first one's name is empty), and their descriptions for tables.

    Raises:
        BenchError: an engine can't run the settings, or has another model than the first.
        EngineError: a directory is not an engine.
    """
    arms: list[EngineArm] = []
    own: list[Own] = []
    for name, folder in engines:
        operators = tuned if name == TUNED else None
        engine = Engine.load(folder, verify=verify, threads=threads, tuned=operators, device=device)
        settings.check(engine.manifest)
        if arms and _model(engine.manifest) != _model(arms[0].engine.manifest):
            raise BenchError(f"{show(folder)} has another model than {show(engines[0][1])}")
        weights = weight_bytes(folder / "decoder.onnx") if engine.manifest.device is None else None
        made = [EngineArm(engine, kept, settings.policy, name) for kept in settings.budgets]
        full = next((arm.label for arm in made if arm.budget == FULL), None)
        arms += made
        own += [Own(arm.label, full, weights) for arm in made]
    return arms, own


def _model(manifest: Manifest) -> tuple[object, ...]:
    """The facts that must be equal for the same prompts to mean the same."""
    return manifest.text, manifest.image, manifest.tokens
