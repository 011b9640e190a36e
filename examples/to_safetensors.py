"""Writes a checkpoint's PyTorch files (`pytorch_model*.bin`) once more as safetensors, beside them.

    pip install torch safetensors
    python examples/to_safetensors.py FOLDER

A file at a time is in memory. Tensors that share memory are written each by itself. Nothing in the files is run: torch
loads tensors alone (`weights_only`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(folder: Path) -> list[Path]:
    """Write `model*.safetensors`, with an index where there are several, and return them."""
    import torch
    from safetensors.torch import save_file

    sources = sorted(folder.glob("pytorch_model*.bin"))
    if not sources:
        raise SystemExit(f"{folder} has no pytorch_model*.bin")
    placed, written = {}, []
    for source in sources:
        state = torch.load(source, map_location="cpu", weights_only=True)
        tensors = {name: value.clone().contiguous() for name, value in state.items()}
        target = folder / f"{source.stem.removeprefix('pytorch_')}.safetensors"
        save_file(tensors, target, {"format": "pt"})
        placed |= dict.fromkeys(tensors, target.name)
        written.append(target)
        print(f"wrote {target}")
    if len(written) > 1:
        index = {"metadata": {}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: to_safetensors.py FOLDER")
    convert(Path(sys.argv[1]))
