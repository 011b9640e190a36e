"""Builds the engines of the benchmark checkpoints on first use.

python examples/benchmark/make_engine.py 150m -o out/bench
"""

from __future__ import annotations

import argparse
from pathlib import Path

import make_checkpoint

from vlkv import Engine
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine


def make(size: str, folder: Path, weights: str | None = None) -> Path:
    """Returns the engine directory `SIZE-engine` or `SIZE-int8-engine`, which lies beside the checkpoint `SIZE`."""
    engine = folder / "-".join(part for part in (size, weights, "engine") if part)
    if not (engine / "manifest.json").exists():
        make_checkpoint.make(size, folder / size)
        export_checkpoint(folder / size, folder / f"{size}-graphs")
        build_engine(folder / f"{size}-graphs", engine, weights=weights or "float32")
    return engine


def engine_of(size: str, folder: Path) -> Engine:
    """Opens the engine of a size."""
    return Engine.load(make(size, folder), verify=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=("20m", "150m"))
    parser.add_argument("--weights", choices=("int8",), help="format of the text model's matrices")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    make(arguments.size, arguments.output, arguments.weights)
