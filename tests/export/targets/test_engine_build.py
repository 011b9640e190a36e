"""`vlkv build`: the contents of an engine directory, and the inputs that it refuses."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from models import tiny
from vlkv.errors import EngineError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.storage.manifest import read
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine
from vlkv_export.targets.onnxruntime import FLOAT32_WEIGHTS
from vlkv_export.targets.windows import inside_window
from vlkv_export.watch import Watch

GRAPHS = {"vision.onnx", "decoder.onnx", "compress.onnx"}
HALF = {"llama-biases": "bfloat16", "llama-old": "float16"}

shapes = pytest.mark.parametrize("name", tiny.SHAPES)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@shapes
@pytest.mark.parametrize("operators", ["native", "functions"])
def test_manifest_tells_all(name, operators, graphs_of, built_of):
    before, after = read(graphs_of(name)), read(built_of(name, operators))
    assert (after.kind, after.backend, after.operators) == ("engine", "onnxruntime", operators)
    assert (before.kind, before.backend) == ("graphs", "none")
    assert before.cache_dtype == HALF.get(name, "float32")
    assert after.cache_dtype == "float32"
    text = before.text if operators == "native" else inside_window(before.text)
    assert (after.text, after.image, after.tokens) == (text, before.image, before.tokens)
    assert after.chat_template == before.chat_template == tiny.CHAT
    assert set(after.versions) == {"vlkv", "onnx", "onnx-ir", "onnxscript", "onnxruntime"}
    folder = built_of(name, operators)
    assert set(after.files) == set(names(folder)) - {"manifest.json"}
    assert set(after.files) >= GRAPHS | {"tokenizer.json", "tokenizer_config.json"}
    for file, facts in after.files.items():
        data = (folder / file).read_bytes()
        assert (facts.size, facts.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", sorted(set(tiny.SHAPES) - set(HALF)))
def test_float32_weights_are_as_in_the_checkpoint(name, checkpoint_of, built_of):
    for path in checkpoint_of(name).glob("*.safetensors"):
        assert (built_of(name) / path.name).read_bytes() == path.read_bytes()
    assert FLOAT32_WEIGHTS not in names(built_of(name))


@pytest.mark.parametrize("name", HALF)
def test_half_weights_are_written_once_in_float32(name, checkpoint_of, built_of):
    folder = built_of(name)
    assert [path.name for path in folder.glob("*.safetensors")] == [FLOAT32_WEIGHTS]
    written = load_file(folder / FLOAT32_WEIGHTS) if name == "llama-old" else None
    source = {}
    for path in checkpoint_of(name).glob("*.safetensors"):
        source |= load_torch(path)
    wide = load_torch(folder / FLOAT32_WEIGHTS)
    originals = {
        key.split("language_model.")[-1].removeprefix("model."): value
        for key, value in source.items()
        if "language_model" in key
    }
    table = wide.pop("text.embed_tokens.weight")
    # rows are read one by one, so the table keeps its dtype
    assert str(table.dtype) == f"torch.{HALF[name]}"
    assert table.equal(originals["embed_tokens.weight"])
    assert {str(value.dtype) for value in wide.values()} == {"torch.float32"}
    for key, value in wide.items():
        if key.startswith("text."):
            assert value.equal(originals[key.removeprefix("text.")].float()), key
    assert written is None or written.keys() == {*wide, "text.embed_tokens.weight"}


@shapes
def test_embedding_rows_are_those_of_the_checkpoint(name, checkpoint_of, graphs_of, built_of):
    tables = {}
    for path in checkpoint_of(name).glob("*.safetensors"):
        tables |= {key: value for key, value in load_torch(path).items() if "embed_tokens" in key}
    (table,) = tables.values()
    ids = np.array([0, 5, 63, 5])
    for folder in (graphs_of(name), built_of(name)):
        rows = TokenEmbedding(folder, read(folder).embedding).rows(ids)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, table.float().numpy()[ids])


@shapes
def test_what_the_lowered_graphs_are_made_of(name, built_of):
    native, functions = (
        onnx.load(built_of(name, operators) / "decoder.onnx", load_external_data=False)
        for operators in ("native", "functions")
    )
    windows = name == "mistral"
    for model, attention in (
        (native, "If" if windows else "AttendFloat32"),
        (functions, "GroupQueryAttention"),
    ):
        made = [node.op_type for node in model.graph.node]
        assert made.count(attention) == 3
        assert not {"Attention", "TensorScatter", "MatMul"} & set(made)
    branches = [graph.g for node in native.graph.node if node.op_type == "If" for graph in node.attribute]
    kinds = sorted(branch.node[-1].op_type for branch in branches)
    assert kinds == (3 * ["Attend"] + 3 * ["GroupQueryAttention"] if windows else [])
    assert not native.functions
    assert [function.name for function in functions.functions] == ["Score"]
    assert [value.name for value in native.graph.output][-3:] == ["query.0", "query.1", "query.2"]
    assert functions.graph.output[-1].name == "sparsity"
    for operators, own in (("native", {"vlkv.native"}), ("functions", set())):
        vision = onnx.load(built_of(name, operators) / "vision.onnx", load_external_data=False)
        assert {node.domain for node in vision.graph.node} == {"", "com.microsoft"} | own


@pytest.mark.parametrize("name", ["llama", "llama-old"])
def test_progress_is_told(name, graphs_of, tmp_path):
    steps, data, totals = [], [], []
    watch = Watch(steps.append, data.append, totals.append)
    build_engine(graphs_of(name), tmp_path / "engine", watch=watch, weights="float32")
    assert "lowering the graphs" in steps
    assert "hashing decoder.onnx" in steps
    assert ("converting the weights to float32" in steps) == (name in HALF)
    assert sum(data) == sum(totals)
    assert ("copying the weights" in steps) == (name not in HALF)
    assert sum(data) > 100_000


def test_export_tells_its_steps(checkpoint_of, tmp_path):
    steps = []
    export_checkpoint(checkpoint_of("llama"), tmp_path / "graphs", steps.append)
    assert steps[0] == "reading the checkpoint"
    assert {"copying the weights", "building the vision graph", "building the decoder graph"} <= set(steps)


def test_an_old_engine_is_replaced_and_other_things_are_not(graphs_of, built_of, tmp_path):
    target = tmp_path / "engine"
    shutil.copytree(built_of("llama"), target)
    (target / "stale").write_text("x")
    build_engine(graphs_of("mistral"), target)
    assert "stale" not in names(target)
    assert read(target).text.architecture == "mistral"
    assert names(tmp_path) == ["engine"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for other in ("mine", "file"):
        for make in (
            lambda to: build_engine(graphs_of("llama"), to),
            lambda to: export_checkpoint(graphs_of("llama"), to),
        ):
            with pytest.raises(ValueError, match=r"exists|config\.json"):
                make(tmp_path / other)
    assert names(tmp_path) == ["engine", "file", "mine"]
    assert names(tmp_path / "mine") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("unknown backend 'cuda'; known: onnxruntime", {"backend": "cuda"}),
        ("unknown operators 'fast'; known: native, functions", {"operators": "fast"}),
    ],
)
def test_unknown_choices(match, options, graphs_of, tmp_path):
    with pytest.raises(EngineError, match=match):
        build_engine(graphs_of("llama"), tmp_path / "engine", **options)
    assert names(tmp_path) == []


def damage(folder: Path, what: str) -> None:
    decoder = folder / "decoder.onnx"
    if what == "missing graph":
        decoder.unlink()
    elif what == "missing weights":
        next(folder.glob("*.safetensors")).unlink()
    elif what == "missing tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "truncated graph":
        decoder.write_bytes(decoder.read_bytes()[:5000])
    elif what == "other graph":
        decoder.write_bytes(bytes(decoder.stat().st_size))
    elif what == "truncated weights":
        path = next(folder.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "other version":
        path = folder / "manifest.json"
        path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"format_version": 9}))
    else:
        (folder / "manifest.json").unlink()


@pytest.mark.parametrize("name", ["llama", "llama-old"])
@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("missing graph", r"decoder\.onnx: missing"),
        ("missing weights", r"safetensors: missing"),
        ("missing tokenizer", r"tokenizer\.json: missing"),
        ("truncated graph", r"decoder\.onnx has 5000 bytes.*changed or truncated"),
        ("other graph", r"decoder\.onnx is changed"),
        ("truncated weights", r"changed or truncated"),
        ("other version", r"format version 9"),
        ("no manifest", r"not a graph or engine directory"),
    ],
)
def test_a_damaged_graph_directory_leaves_nothing(name, what, match, graphs_of, tmp_path):
    shutil.copytree(graphs_of(name), tmp_path / "graphs")
    damage(tmp_path / "graphs", what)
    with pytest.raises(EngineError, match=match) as caught:
        build_engine(tmp_path / "graphs", tmp_path / "engine")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["graphs"]


def test_an_engine_is_no_graph_directory(built_of, tmp_path):
    with pytest.raises(EngineError, match="holds an engine"):
        build_engine(built_of("llama"), tmp_path / "engine")
    assert names(tmp_path) == []


def test_a_build_that_fails_halfway_leaves_nothing(graphs_of, tmp_path):
    def fail(step):
        if step.startswith("hashing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(graphs_of("llama"), tmp_path / "deep" / "engine", watch=Watch(step=fail))
    assert names(tmp_path) == []
