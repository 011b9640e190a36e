"""The 7B's script: sharded checkpoints hold the same tensors as whole ones, and a step's memory is watched."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

PLACE = Path(__file__).parents[2] / "examples" / "benchmark"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(PLACE))
    import make_checkpoint
    import seven_b

    yield make_checkpoint, seven_b
    for name in ("make_checkpoint", "seven_b"):
        del sys.modules[name]


def test_shards_hold_the_tensors_of_the_whole(scripts, monkeypatch, tmp_path):
    make_checkpoint, _ = scripts
    small = replace(
        make_checkpoint.SIZES["20m"], hidden=64, heads=1, kv_heads=1, layers=2, intermediate=96, vocab=300
    )
    monkeypatch.setitem(make_checkpoint.SIZES, "whole", small)
    monkeypatch.setitem(make_checkpoint.SIZES, "sharded", replace(small, sharded=True))
    monkeypatch.setattr(make_checkpoint, "SHARD", 100_000)
    monkeypatch.setattr(make_checkpoint, "PIECE", 1000)
    whole = load_file(make_checkpoint.make("whole", tmp_path / "whole", 7) / "model.safetensors")
    folder = make_checkpoint.make("sharded", tmp_path / "sharded", 7)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert set(index) == set(whole)
    for file in set(index.values()):
        for name, values in load_file(folder / file).items():
            assert index[name] == file
            np.testing.assert_array_equal(values, whole[name])


def test_a_steps_memory_is_watched(scripts, capfd):
    _, seven_b = scripts
    size = 200 << 20
    program = f"import time, numpy; held = numpy.ones({size}, numpy.uint8); time.sleep(1)"
    step = seven_b.watched("hold", [sys.executable, "-c", program])
    assert size < step.own < size + (100 << 20)
    assert step.resident >= step.own
    assert step.seconds >= 1
    assert "hold:" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        seven_b.watched("fail", [sys.executable, "-c", "raise SystemExit(3)"])
    assert ended.value.code == 3
