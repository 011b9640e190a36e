"""The shipped checkpoint's engine, and the same architecture with random weights as a control."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vlkv import Engine

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "tiny_vlm" / "checkpoint"


def build(checkpoint: Path, folder: Path) -> Path:
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.engine import build_engine

    export_checkpoint(checkpoint, folder / "graphs")
    build_engine(folder / "graphs", folder / "engine")
    return folder / "engine"


@pytest.fixture(scope="session")
def shipped(tmp_path_factory) -> Path:
    """The engine directory of the shipped checkpoint."""
    return build(SHIPPED, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="session")
def reader(shipped) -> Engine:
    return Engine.load(shipped, threads=1)


@pytest.fixture(scope="session")
def control(tmp_path_factory) -> Engine:
    """Writes the shipped checkpoint with the numbers of every matrix in another order."""
    numpy = pytest.importorskip("safetensors.numpy")
    folder = tmp_path_factory.mktemp("control")
    shutil.copytree(SHIPPED, folder / "checkpoint")
    path = folder / "checkpoint" / "model.safetensors"
    rng = np.random.default_rng(0)
    weights = {
        name: rng.permutation(array.ravel()).reshape(array.shape)
        for name, array in numpy.load_file(path).items()
    }
    numpy.save_file(weights, path, metadata={"format": "pt"})
    return Engine.load(build(folder / "checkpoint", folder), threads=1)
