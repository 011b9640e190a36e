"""PyTorch files of the original LLaVA and of its tower, written anew and exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import originals
from vlkv.errors import CheckpointError
from vlkv_export.models import read_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "to_safetensors.py"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)


def as_bin(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """Move a folder's weights into PyTorch files of these names."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(names):
        part = {
            key: value for place, (key, value) in enumerate(state.items()) if place % len(names) == number
        }
        torch.save(part, folder / name)
    return state


def test_shards_and_a_tower(tmp_path: Path) -> None:
    made = originals.build("v1.5", tmp_path)
    want = read_checkpoint(made.folder, made.tower)
    state = as_bin(made.folder, "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    as_bin(made.tower, "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"holds PyTorch files .* `python examples/to_safetensors\.py FOLDER`"
    ):
        read_checkpoint(made.folder, made.tower)
    assert run(made.folder).returncode == run(made.tower).returncode == 0
    found = read_checkpoint(made.folder, made.tower)
    assert found.tensors.keys() == want.tensors.keys()
    shards = [load_file(path) for path in sorted(made.folder.glob("*.safetensors"))]
    assert len(shards) == 2
    for key, value in (shards[0] | shards[1]).items():
        assert torch.equal(value, state[key])


def test_nothing_to_write(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.returncode == 1 and "has no pytorch_model*.bin" in found.stderr
