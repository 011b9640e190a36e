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
    """Returns the engine directory `SIZE-engine` or, say, `SIZE-int8-engine`, which lies beside the checkpoint `SIZE`.

    With weights of 16 bits or fewer the cache is bfloat16.
    """
    engine = folder / "-".join(part for part in (size, weights, "engine") if part)
    if not (engine / "manifest.json").exists():
        make_checkpoint.make(size, folder / size)
        graphs = folder / f"{size}-graphs"
        export_checkpoint(folder / size, graphs, link=True)
        build_engine(
            graphs, engine, weights=weights or "float32", kv_dtype="bfloat16" if weights else "float32"
        )
    return engine


def engine_of(size: str, folder: Path) -> Engine:
    """Opens the engine of a size."""
    return Engine.load(make(size, folder), verify=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=("20m", "150m"))
    parser.add_argument("--weights", choices=("bfloat16", "int8", "int4"), help="default: float32")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    make(arguments.size, arguments.output, arguments.weights)
