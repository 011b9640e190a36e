"""Polygraphy on exported and on lowered graphs, with the commands of docs/tensorrt.md, and `--lower-only`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from vlkv import Engine
from vlkv.errors import EngineError
from vlkv.storage.manifest import read, verify
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

ONCE = ["--val-range", "length:[0,0]", "row_index:[0,0]"]
"""Polygraphy sets each unknown size to 1. A cache of one slot must be empty to take a token, and there is one row."""


@pytest.fixture(scope="module")
def lowered(graphs_of, tmp_path_factory):
    """Lowered graphs with the plugin's nodes, written without TensorRT."""
    folder = tmp_path_factory.mktemp("lowered") / "g"
    settings = Settings(dtype="float32", capacity=64, lower_only=True)
    build_engine(graphs_of("llama-gqa-tied"), folder, "tensorrt", "native", settings=settings)
    return folder


def polygraphy(*arguments: object) -> str:
    pytest.importorskip("polygraphy")
    command = [str(Path(sys.executable).with_name("polygraphy")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect(graphs_of):
    told = polygraphy("inspect", "model", graphs_of("llama") / "decoder.onnx", "--ignore-external-data")
    assert "key_cache.0 [dtype=float32, shape=('B', 4, 'C_0', 16)]" in told
    assert "Other Opsets: {'vlkv': 1}" in told


def test_run_as_exported(graphs_of):
    told = polygraphy("run", graphs_of("llama") / "decoder.onnx", "--onnxrt", *ONCE)
    assert "sparsity [dtype=float32, shape=(3, 1)]" in told
    assert "PASSED" in told


def test_run_as_lowered(lowered):
    """A runtime without the plugin runs the plugin's nodes as functions."""
    assert "PASSED" in polygraphy("run", lowered / "decoder.onnx", "--onnxrt", *ONCE)


def test_what_is_written_to_lower_only(lowered):
    facts = read(lowered)
    verify(lowered, facts)
    assert (facts.kind, facts.backend, facts.operators, facts.device.capacity) == (
        "lowered",
        "tensorrt",
        "native",
        64,
    )
    names = {path.stem for path in lowered.glob("*.onnx")}
    assert names == {"vision", "decoder", "compress", "compress_merge"}
    nodes = onnx.load(lowered / "decoder.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "VlkvScore" for node in nodes) == 3
    assert not list(lowered.glob("*.engine"))


def test_lowered_graphs_are_no_engine(lowered, tmp_path):
    with pytest.raises(EngineError, match="holds lowered graphs"):
        Engine.load(lowered)
    with pytest.raises(EngineError, match="holds lowered graphs; vlkv build takes a graph directory"):
        build_engine(lowered, tmp_path / "e")
