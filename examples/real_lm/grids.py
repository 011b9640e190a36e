"""Make a checkpoint that takes pictures as grids of tiles of the one that `make_checkpoint` writes.

$ python -m examples.real_lm.grids FOLDER OUT

LLaVA-NeXT's class, grids and newline around the same weights: up to 2,928 tokens a picture of a real language model.
The tower is random as before. `vlkv inspect` shows on it what a policy keeps of which tile; see
docs/notes/evaluation.md. OUT shares the weights' file with FOLDER where the file system can.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

CLASS, PINPOINTS = "LlavaNext", [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
WEIGHTS = "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def main(source: Path, out: Path) -> None:
    """Writes the checkpoint; the newline is random, of the size of token embeddings."""
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.name == WEIGHTS:
            same = path.stat().st_dev == out.stat().st_dev
            (os.link if same else shutil.copy)(path, out / SHARDS[0])
        elif path.is_file():
            shutil.copy(path, out)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": [f"{CLASS}ForConditionalGeneration"], "model_type": "llava_next"}
    config["image_grid_pinpoints"] = PINPOINTS
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processors = json.loads((source / "processor_config.json").read_text())
    processors["image_processor"] |= {
        "image_processor_type": f"{CLASS}ImageProcessor",
        "image_grid_pinpoints": PINPOINTS,
    }
    (out / "processor_config.json").write_text(json.dumps(processors, indent=2) + "\n")
    with safe_open(source / WEIGHTS, "np") as weights:
        names = list(weights.keys())
        table = weights.get_slice(next(name for name in names if name.endswith("embed_tokens.weight")))[:1000]
    newline = np.random.default_rng(0).standard_normal(table.shape[1]) * table.std()
    save_file({"model.image_newline": newline.astype(np.float32)}, out / SHARDS[1])
    placed = dict.fromkeys(names, SHARDS[0]) | {"model.image_newline": SHARDS[1]}
    (out / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": placed}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
