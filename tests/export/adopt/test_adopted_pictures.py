"""LLaVAs in ONNX files alone: answers about pictures are those of the checkpoint that they were exported from."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir
import pytest

from export.adopt.conftest import PICTURES, TINY
from vlkv import Engine
from vlkv.errors import CheckpointError
from vlkv_export.adopt.directory import adopt_folder
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

EXAMPLE = TINY.parent / "example.png"
ASKED = ("what is the total?", "what is the type?")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The checkpoint's engine by `vlkv export`, whose tokens are those of transformers (tests/models)."""
    base = tmp_path_factory.mktemp("own")
    export_checkpoint(TINY, base / "graphs")
    build_engine(base / "graphs", base / "engine")
    return Engine.load(base / "engine")


@pytest.mark.parametrize("exporter", list(PICTURES))
def test_answers_about_pictures_are_the_checkpoints(exported, own, tmp_path: Path, exporter: str):
    one = exported(exporter, *PICTURES[exporter][0])
    notes: list[str] = []
    adopt_folder(one.folder, tmp_path / "graphs", tell=notes.append)
    assert any("features differ" in note for note in notes)
    build_engine(tmp_path / "graphs", tmp_path / "engine")
    engine = Engine.load(tmp_path / "engine")
    for text in ASKED:
        for settings in ({"policy": "full"}, {"policy": "vl-cache", "budget": 0.3}):
            asked = {"images": [EXAMPLE], "max_new_tokens": 8, **settings}
            assert engine.generate(text, **asked).token_ids == own.generate(text, **asked).token_ids
    assert (
        engine.generate(ASKED[0], max_new_tokens=4).token_ids
        == own.generate(ASKED[0], max_new_tokens=4).token_ids
    )


def changed(folder: Path, target: Path, name: str, change) -> Path:
    shutil.copytree(folder, target)
    model = ir.load(target / name)
    change(model.graph)
    ir.save(model, target / name)
    return target


def closed(graph: ir.Graph) -> None:
    graph.inputs[0].shape = ir.Shape([1, 3, 336, 336])


def smaller(graph: ir.Graph) -> None:
    graph.inputs[0].shape = ir.Shape(["N", 3, 224, 224])


def another_flag(graph: ir.Graph) -> None:
    next(value for value in graph.inputs if value.name == "use_cache_branch").name = "use_past"


def scaled(graph: ir.Graph) -> None:
    rows = graph.outputs[0]
    node = ir.Node("", "Mul", [rows, rows], name="scale")
    graph.append(node)
    node.outputs[0].name = "scaled"
    graph.outputs[0] = node.outputs[0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vision_encoder.onnx", closed, r"\[N,3,H,W\] with N open"),
        ("vision_encoder.onnx", smaller, "has 224 in dimension 2; the processor makes 336"),
        ("decoder_model_merged.onnx", another_flag, r"\(If\): expected none, or one that .*use_cache_branch"),
        ("embed_tokens.onnx", scaled, r"node 'scale' \(Mul\): reads the embeddings; expected"),
    ],
)
def test_other_graphs_are_refused_by_name(exported, tmp_path: Path, name: str, change, message: str):
    one = exported("llava", *PICTURES["llava"][0])
    folder = changed(one.folder, tmp_path / "changed", name, change)
    with pytest.raises(CheckpointError, match=message):
        adopt_folder(folder, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_what_is_missing_is_named(exported, tmp_path: Path):
    one = exported("llava", *PICTURES["llava"][0])
    folder = shutil.copytree(one.folder, tmp_path / "alone")
    (folder / "embed_tokens.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"its token embedding is not beside it; expected embed_tokens"):
        adopt_folder(folder, tmp_path / "graphs")
    one = exported("multimodal", *PICTURES["multimodal"][0])
    folder = shutil.copytree(one.folder, tmp_path / "bare")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vision.onnx, and no config.json .* --vision"):
        adopt_folder(folder, tmp_path / "graphs")
