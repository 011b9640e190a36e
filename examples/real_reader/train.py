"""Trains the delta by seed: the tower and projector, then the language model's low-rank matrices.

$ python -m examples.real_reader.train --seed 0 -o out/real_reader/delta.safetensors

It needs the extra `train`, gguf and accelerate.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from . import base
from .join import save_delta
from .reader import train_reader
from .tower import train_tower


def main(arguments: list[str] | None = None) -> int:
    """Trains and writes. The delta so far is written every 20 steps of the language model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the forms, 0 to 999")
    parser.add_argument("--output", "-o", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--cache", type=Path, default=Path("out/real_reader/base"), help="folder for the package's file"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 1000:
        parser.error(f"seed {options.seed} is outside 0 to 999")
    torch.set_num_threads(options.threads)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def tell(line: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {line}", flush=True)

    tower = train_tower(options.seed, tell)
    text, tokenizer = base.load(options.cache)
    trained = train_reader(
        text, tokenizer, options.seed, tell, lambda weights: save_delta(tower, weights, options.output)
    )
    save_delta(tower, trained, options.output)
    tell(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
