"""Whose the weight files are: a directory's are its own, or links to the checkpoint's where these are asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.checker
import pytest
from onnx.reference import ReferenceEvaluator

from vlkv import Engine
from vlkv.errors import EngineError
from vlkv.storage.files import clone_file
from vlkv_export.directory import LINKED, export_checkpoint
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings
from vlkv_export.watch import Watch

QUESTION = ("what is the total", ())


@pytest.fixture
def checkpoint(checkpoint_of, tmp_path):
    return Path(shutil.copytree(checkpoint_of("llama"), tmp_path / "checkpoint"))


@pytest.fixture
def clones(tmp_path):
    """Whether the file system has clones: then nothing is ever a hard link."""
    (tmp_path / "a").write_bytes(b"a")
    return clone_file(tmp_path / "a", tmp_path / "b")


def weights(folder):
    return sorted(Path(folder).glob("*.safetensors"))


def links(folder):
    return {path.stat().st_nlink for path in weights(folder)}


def test_an_engine_stays_what_it_was(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "graphs", link=True)
    build_engine(tmp_path / "graphs", tmp_path / "engine")
    assert links(tmp_path / "engine") == {1}
    inodes = {path.stat().st_ino for path in checkpoint.iterdir()}
    assert not inodes & {path.stat().st_ino for path in (tmp_path / "engine").iterdir()}
    engine = Engine.load(tmp_path / "engine")
    before = engine.generate(*QUESTION, max_new_tokens=8).token_ids
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        path.write_bytes(bytes(len(data)))  # in place, as cp does
        assert engine.generate(*QUESTION, max_new_tokens=8).token_ids == before
        path.write_bytes(b"")
    assert engine.generate(*QUESTION, max_new_tokens=8).token_ids == before
    assert Engine.load(tmp_path / "engine").generate(*QUESTION, max_new_tokens=8).token_ids == before


def test_links_where_they_are_asked_for(checkpoint, tmp_path, clones):
    notes = []
    export_checkpoint(checkpoint, tmp_path / "graphs", tell=notes.append, link=True)
    assert (LINKED in notes) != clones
    build_engine(tmp_path / "graphs", tmp_path / "engine", link=True)
    assert links(tmp_path / "engine") == ({1} if clones else {3})
    assert {path.stat().st_nlink for path in (tmp_path / "engine").glob("*.json")} == {1}


def test_tools_open_the_graphs(checkpoint, tmp_path):
    told = []
    watch = Watch(data=told.append)
    export_checkpoint(checkpoint, tmp_path / "graphs", watch=watch)
    assert links(tmp_path / "graphs") == {1}
    assert sum(told) in (0, sum(path.stat().st_size for path in weights(checkpoint)))
    for name in ("vision", "decoder", "compress"):
        path = tmp_path / "graphs" / f"{name}.onnx"
        assert onnx.load(path).graph.output
        onnx.checker.check_model(str(path), full_check=True)
        assert ReferenceEvaluator(str(path)).output_names


@pytest.mark.parametrize("kind", ["graphs", "lowered"])
def test_polygraphy_opens_them(checkpoint, tmp_path, kind):
    pytest.importorskip("polygraphy")
    export_checkpoint(checkpoint, tmp_path / "graphs")
    if kind == "lowered":
        settings = Settings(lower_only=True)
        build_engine(tmp_path / "graphs", tmp_path / "lowered", "tensorrt", settings=settings)
    command = [
        Path(sys.executable).with_name("polygraphy"),
        "inspect",
        "model",
        str(tmp_path / kind / "decoder.onnx"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "logits" in done.stdout


def test_a_full_disk_is_told_before_the_copy(checkpoint, tmp_path, monkeypatch, clones):
    if clones:
        pytest.skip("clones take no space")
    export_checkpoint(checkpoint, tmp_path / "graphs", link=True)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("vlkv_export.weights.files.shutil.disk_usage", lambda _: usage)
    for make in (
        lambda: build_engine(tmp_path / "graphs", tmp_path / "engine"),
        lambda: export_checkpoint(checkpoint, tmp_path / "copied"),
    ):
        with pytest.raises(
            EngineError, match=r"No space left on device: 0\.0 GiB are free, the weights take 0\.0 GiB"
        ):
            make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "checkpoint", "graphs"]


def test_the_commands(vlkv, checkpoint, tmp_path, clones):
    for more, one in (((), True), (("--link",), clones)):
        code, _, said = vlkv("export", checkpoint, "-o", tmp_path / "graphs", *more)
        assert code == 0
        assert ("hard links" in said) != one
        assert (links(tmp_path / "graphs") == {1}) == one
    for more, one in (((), True), (("--link",), clones)):
        assert vlkv("build", tmp_path / "graphs", "-o", tmp_path / "engine", *more)[0] == 0
        assert (links(tmp_path / "engine") == {1}) == one


def test_a_source_is_not_replaced(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    shutil.move(checkpoint, tmp_path / "out" / "checkpoint")
    shutil.copytree(
        tmp_path / "out", tmp_path / "out" / "graphs", ignore=shutil.ignore_patterns("checkpoint")
    )
    (tmp_path / "link").symlink_to("out")
    for make in (
        lambda: build_engine(tmp_path / "out", tmp_path / "out"),
        lambda: build_engine(tmp_path / "out", tmp_path / "link"),
        lambda: build_engine(tmp_path / "out" / "graphs", tmp_path / "out"),
        lambda: export_checkpoint(tmp_path / "out" / "checkpoint", tmp_path / "out"),
    ):
        with pytest.raises(EngineError, match="which it would replace"):
            make()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*before, "checkpoint", "graphs"]
    )
