"""`make accuracy`: the checkpoints that its table is made of, and the contents of the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

accuracy = pytest.importorskip("examples.tiny_vlm.accuracy")
spread = pytest.importorskip("examples.tiny_vlm.spread")

RESULTS = {
    "seed 0": {("full", 1.0): 1.0, ("vl-cache", 0.1): 0.25},
    "seed 1": {("full", 1.0): 0.99, ("vl-cache", 0.1): 0.75},
}


def test_table_has_mean_range_and_each_checkpoint():
    assert spread.table(RESULTS).splitlines() == [
        "| policy | budget | mean | range | seed 0 | seed 1 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| full | 1 | 99.5% | 99.0-100.0% | 100.0 | 99.0 |",
        "| vl-cache | 0.1 | 50.0% | 25.0-75.0% | 25.0 | 75.0 |",
    ]


@pytest.fixture
def trainings(monkeypatch):
    """Replaces training: seed 1 is refused, seed 2 fails, and the others write a checkpoint at once."""
    asked = []

    def run(command, stdout, **options):
        seed, folder = command[command.index("--seed") + 1], Path(command[command.index("-o") + 1])
        asked.append(seed)
        stdout.write(f"chatter\nseed {seed}: trained\n")
        if seed == "0":
            folder.mkdir()
            (folder / "model.safetensors").touch()
        return subprocess.CompletedProcess(command, {"1": accuracy.REFUSED, "2": 1}.get(seed, 0))

    monkeypatch.setattr(accuracy.subprocess, "run", run)
    return asked


def test_refused_seeds_are_left_out_and_kept_ones_not_trained_again(trainings, tmp_path, capsys):
    recipes = [accuracy.Recipe(1), accuracy.Recipe(0)]
    for _ in range(2):
        made = accuracy.all_trained(recipes, tmp_path, jobs=1)
        assert [checkpoint.name for checkpoint in made] == ["seed 0"]
    assert trainings == ["1", "0", "1"]
    assert "seed 1: trained\n" in capsys.readouterr().out


def test_a_broken_training_is_no_refusal(trainings, tmp_path):
    with pytest.raises(RuntimeError, match=r"seed 2 ended with 1: .*seed-2\.log"):
        accuracy.all_trained([accuracy.Recipe(2)], tmp_path, jobs=2)


def test_control_holds_the_same_numbers_in_another_order(tmp_path):
    from safetensors.numpy import load_file

    shipped = ROOT / "examples" / "tiny_vlm" / "checkpoint"
    control = accuracy.shuffled(accuracy.Checkpoint("shipped", shipped, "words"), tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (shipped, control.folder))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].shape == array.shape
        np.testing.assert_array_equal(np.sort(after[name], axis=None), np.sort(array, axis=None))
    name = next(key for key in before if "embed_tokens" in key)
    assert not np.array_equal(before[name], after[name])


def test_training_refuses_a_folder_that_holds_something_before_it_begins(tmp_path, capsys):
    train = pytest.importorskip("examples.tiny_vlm.train")
    (tmp_path / "kept").touch()
    with pytest.raises(SystemExit) as stopped:
        train.main(["--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "not empty" in capsys.readouterr().err
