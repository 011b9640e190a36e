"""The benchmark as a function: opens the engines, starts the peers, and measures all of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vlkv.bench.arms import TUNED, open_arms
from vlkv.bench.charts import draw
from vlkv.bench.fidelity import fidelity
from vlkv.bench.measure import measure
from vlkv.bench.peers import PEERS, started
from vlkv.bench.probe import Bandwidth
from vlkv.bench.prompts import make_prompts
from vlkv.bench.report import markdown, record
from vlkv.bench.settings import Settings
from vlkv.errors import BenchError
from vlkv.storage.files import reason, show, write_bytes

ENVIRONMENTS = Path("out/peers")
"""The default folder of the peers' environments."""


@dataclass(frozen=True)
class Report:
    """The results of a benchmark.

    Fields:
        record: settings, machine and all figures; JSON types only.
        markdown: the same as tables.
    """

    record: dict[str, Any]
    markdown: str

    def json(self) -> bytes:
        """The record as one JSON object."""
        return msgspec.json.encode(self.record)

    def write(self, folder: Path) -> str | None:
        """Writes `bench.md`, `bench.json` and the charts.

        Returns:
            Why there are no charts, or None if they were drawn.
        """
        write_bytes(folder / "bench.md", self.markdown.encode())
        write_bytes(folder / "bench.json", msgspec.json.format(self.json(), indent=2) + b"\n")
        try:
            charts = draw(self.record)
        except BenchError as error:
            return str(error)
        for name, data in charts.items():
            write_bytes(folder / name, data)
        return None


def run(
    engine: Path | str,
    settings: Settings,
    *,
    also: Mapping[str, Path | str] | None = None,
    tuned: Path | str | None = None,
    peers: Sequence[str] = (),
    checkpoint: Path | str | None = None,
    peers_directory: Path | str = ENVIRONMENTS,
    output: Path | str | None = None,
    threads: int = 0,
    verify: bool = True,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Measures an engine's latency under each budget, beside other engines and programs; runs take turns.

    Args:
        engine: an engine directory.
        settings: prompt lengths, batches, budgets, lengths of answers (tokens), repeats.
        also: further engines of the same checkpoint, by name.
        tuned: a folder of `vlkv tune ENGINE`; the engine runs once more with its operators, as "tuned".
        peers: names from `vlkv.bench.peers.PEERS`; they need `checkpoint`.
        checkpoint: the Hugging Face folder that the engine was exported from.
        peers_directory: the folder of the peers' environments; pip makes them on first use.
        output: a folder, made before any measurement so that an invalid one is refused early. The caller writes the
            report with `Report.write`.
        threads: threads of one operator; 0 uses all cores.
        verify: whether the engines' files are hashed and compared with their manifests.
        device: of engines for ONNX Runtime, as in `Engine.load`.
        progress: called with a line about each step.

    Raises:
        BenchError: the engine can't run the settings, a peer is unknown, or a peer has no checkpoint.
        EngineError: a directory is not an engine.
    """
    source = None if checkpoint is None else Path(checkpoint)
    _check_peers(peers, source)
    if output is not None:
        _make_folder(Path(output))
    engines = [("", Path(engine)), *((name, Path(folder)) for name, folder in (also or {}).items())]
    if tuned is not None:
        engines.append((TUNED, Path(engine)))
    progress("opening the engine" if len(engines) == 1 else "opening the engines")
    arms, own = open_arms(engines, settings, threads, verify, None if tuned is None else Path(tuned), device)
    first = arms[0].engine
    probe = Bandwidth(threads) if first.manifest.device is None else _no_bandwidth
    with started(peers, first, source, Path(peers_directory), threads, progress) as (others, failed):
        measured = measure(settings, first.manifest, [*arms, *others], probe, progress)
    measured.failed = failed | measured.failed
    progress("what the answers are worth")
    cell = min(measured.cells, key=lambda cell: (cell.length, cell.new_tokens))
    asked = make_prompts(first.manifest, cell.length, cell.batch)[0]
    worth = fidelity(arms, asked, cell.runs[arms[0].label][0].tokens[0])
    versions = {arm.label: arm.versions for arm in others}
    found = record(settings, first.manifest, measured, own, versions, worth)
    return Report(found, markdown(found, own))


def _check_peers(names: Sequence[str], checkpoint: Path | None) -> None:
    for name in names:
        if name not in PEERS:
            raise BenchError(f"peers {name!a:.40} is unknown; known: {', '.join(PEERS)}")
    if names and checkpoint is None:
        raise BenchError(f"peers {','.join(names)} need --checkpoint, the Hugging Face folder of this engine")
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        raise BenchError(f"checkpoint {show(checkpoint)} holds no config.json")


def _no_bandwidth() -> float:
    """Stands for the bandwidth of a device's memory, which this process can't measure."""
    return 0.0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{show(folder)}: {reason(error)}") from None
