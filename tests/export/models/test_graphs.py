"""The graphs are valid and portable, have the names of the structure page, and fit a checkpoint of any size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from models import onnx_runs, sparse, tiny
from vlkv.storage.manifest import read
from vlkv_export.directory import export_checkpoint
from vlkv_export.ops import DOMAIN

GRAPHS = ("vision", "decoder", "compress")
ELEMENTS = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}

shapes = pytest.mark.parametrize("name", tiny.SHAPES)


def border(values):
    """Returns {name: (dtype, dimensions)} of inputs or outputs, in order."""
    described = {}
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        described[value.name] = (onnx.TensorProto.DataType.Name(kind.elem_type), dims)
    return described


def per_layer(text, kinds, dtype, last):
    return {
        f"{kind}.{layer}": (dtype, ["B", text.kv_heads, f"C_{layer}", *last])
        for layer in range(text.layers)
        for kind in kinds
    }


@pytest.fixture(scope="module")
def copy_of(graphs_of, tmp_path_factory):
    """Copies graph directories with their weights. onnx refuses files that have several hard links."""
    base = tmp_path_factory.mktemp("copies")
    return cache(lambda name: Path(shutil.copytree(graphs_of(name), base / name)))


@shapes
@pytest.mark.parametrize("graph", GRAPHS)
def test_checker_and_versions(name, graph, copy_of):
    path = copy_of(name) / f"{graph}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 24
    assert {node.domain for node in model.graph.node} <= {"", DOMAIN}
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    used |= {
        inner.op_type
        for node in model.graph.node
        for attribute in node.attribute
        for inner in attribute.g.node
        if inner.domain == DOMAIN
    }
    assert used == {"vision": set(), "decoder": {"Score"}, "compress": {"Evict"}}[graph]
    # each of our operators comes with its body in standard operators
    assert {(function.domain, function.name) for function in model.functions} == {(DOMAIN, n) for n in used}
    for function in model.functions:
        assert {node.domain for node in function.node} == {""}
        assert function.doc_string
    if graph != "compress":
        names = [node.name for node in model.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)


@shapes
def test_vision_border(name, graphs_of):
    manifest = read(graphs_of(name))
    graph = onnx.load(graphs_of(name) / "vision.onnx", load_external_data=False).graph
    image = manifest.image
    assert border(graph.input) == {"pixel_values": ("FLOAT", ["N", 3, image.height, image.width])}
    features = ["N", image.tile_features, manifest.text.hidden]
    assert border(graph.output) == {"image_features": ("FLOAT", features)}


@shapes
def test_decoder_border(name, graphs_of):
    manifest = read(graphs_of(name))
    text, dtype = manifest.text, ELEMENTS[manifest.cache_dtype]
    graph = onnx.load(graphs_of(name) / "decoder.onnx", load_external_data=False).graph
    assert border(graph.input) == {
        "inputs_embeds": ("FLOAT", ["B", "S", text.hidden]),
        "position_ids": ("INT64", ["B", "S"]),
        "row_index": ("INT64", ["B", "W"]),
        "length": ("INT64", [text.layers, "B"]),
        **per_layer(text, ("key_cache", "value_cache"), dtype, [text.head_dim]),
    }
    assert border(graph.output) == {
        "logits": ("FLOAT", ["B", text.vocab]),
        **per_layer(text, ("new_key_cache", "new_value_cache"), dtype, [text.head_dim]),
        **per_layer(text, ("score",), "FLOAT", []),
        "sparsity": ("FLOAT", [text.layers, "B"]),
    }


@shapes
def test_compress_border(name, graphs_of):
    manifest = read(graphs_of(name))
    heads, dim, dtype = manifest.text.kv_heads, manifest.text.head_dim, ELEMENTS[manifest.cache_dtype]
    graph = onnx.load(graphs_of(name) / "compress.onnx", load_external_data=False).graph
    assert border(graph.input) == {
        "key": (dtype, ["B", heads, "C", dim]),
        "value": (dtype, ["B", heads, "C", dim]),
        "score": ("FLOAT", ["B", heads, "C"]),
        **{name: ("INT64", ["B"]) for name in ("length", "keep", "sinks", "recent")},
        "capacity": ("INT64", []),
        "per_head": ("BOOL", []),
        "merge": ("BOOL", []),
    }
    assert border(graph.output) == {
        "new_key": (dtype, ["B", heads, "capacity", dim]),
        "new_value": (dtype, ["B", heads, "capacity", dim]),
        "position": ("INT32", ["B", heads, "capacity"]),
    }


@shapes
def test_weights_lie_in_the_checkpoints_files(name, checkpoint_of, graphs_of):
    checkpoint, graphs = checkpoint_of(name), graphs_of(name)
    files = {path.name for path in checkpoint.glob("*.safetensors")}
    assert {path.name for path in graphs.glob("*.safetensors")} <= files
    for file in graphs.glob("*.safetensors"):
        assert file.read_bytes() == (checkpoint / file.name).read_bytes()
    for graph in GRAPHS:
        assert (graphs / f"{graph}.onnx").stat().st_size < 200_000
        for value in ir.load(graphs / f"{graph}.onnx").graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                assert str(value.const_value.location) in files
            else:
                assert value.const_value.size <= 4
    # a tied head is the embedding table, which is stored once
    head = ir.load(graphs / "decoder.onnx").graph.initializers["lm_head.weight"].const_value
    table = read(graphs).embedding
    tied = json.loads((checkpoint / "config.json").read_text()).get("tie_word_embeddings", False)
    assert ((head.location, head.offset) == (table.file, table.offset)) == tied


@pytest.mark.parametrize("call", onnx_runs.CALLS)
@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "mistral"])
def test_portable_decoder_agrees_with_the_lowered_one(name, operators, call, graphs_of, built_of, rng):
    feeds = onnx_runs.decoder_feeds(read(graphs_of(name)), call, rng)
    portable = onnx_runs.run(graphs_of(name) / "decoder.onnx", feeds)
    lowered = onnx_runs.run(built_of(name, operators) / "decoder.onnx", feeds)
    onnx_runs.assert_decoders_agree(portable, lowered, feeds)
    assert ("score.0" in lowered) == (operators == "functions")
    assert ("query.0" in lowered) == (operators == "native")
    assert min(portable["sparsity"].shape) > 0
    for layer, slots in ((0, onnx_runs.valid_slots(feeds, 0)),):
        rows = (feeds["row_index"] >= 0).sum(axis=1)
        score = portable[f"score.{layer}"].astype(np.float64)
        heads = read(graphs_of(name)).text.query_heads
        for prompt, valid in enumerate(slots):
            # each observed row of each query head distributes a weight of one
            assert score[prompt].sum() == pytest.approx(rows[prompt] * heads, rel=1e-5)
            assert (score[prompt][:, valid.stop :] == 0).all()


@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "mistral"])
def test_portable_vision_and_compress_agree_with_the_lowered_ones(name, graphs_of, built_of, rng):
    manifest = read(graphs_of(name))
    size = (3, manifest.image.height, manifest.image.width)
    pixels = {"pixel_values": rng.normal(size=(2, *size)).astype(np.float32)}
    first, second = (
        onnx_runs.run(folder / "vision.onnx", pixels)["image_features"]
        for folder in (graphs_of(name), built_of(name, "functions"))
    )
    # one dot product of 588 terms, and about 10 of 30 to 100
    limit = 2 * onnx_runs.ROUNDOFF * 1500**0.5 * np.abs(first).max()
    np.testing.assert_allclose(first, second, rtol=0, atol=limit)

    text = manifest.text
    shape = (2, text.kv_heads, 17, text.head_dim)
    feeds = {
        "key": rng.normal(size=shape).astype(np.float32),
        "value": rng.normal(size=shape).astype(np.float32),
        "score": rng.random(shape[:3]).astype(np.float32),
        "length": np.array([17, 12]),
        "keep": np.array([6, 5]),
        "sinks": np.array([1, 0]),
        "recent": np.array([2, 1]),
        "capacity": np.array(8),
        "per_head": np.array(True),
        "merge": np.array(False),
    }
    first, second = (
        onnx_runs.run(folder / "compress.onnx", feeds)
        for folder in (graphs_of(name), built_of(name, "functions"))
    )
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert (first["position"][0] >= 0).sum() == 6 * text.kv_heads


MEASURE = """
import sys, time
from pathlib import Path
from vlkv_export.directory import export_checkpoint
start = time.perf_counter()
export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), link=True)
seconds = time.perf_counter() - start
# the peak memory of this program alone; ru_maxrss would include that of the process from which it was forked
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, peak * 1024, "torch" in sys.modules, "transformers" in sys.modules)
"""


def export_measured(source: Path, target: Path) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seconds, peak, *loaded = done.stdout.split()
    assert loaded == ["False", "False"]
    return float(seconds), int(peak)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
def test_export_of_seven_billion_weights(tmp_path):
    source = sparse.write(tmp_path / "7b", sparse.LLAVA_7B)
    weights = source / "model.safetensors"
    assert weights.stat().st_size > 13 << 30
    seconds, peak = export_measured(source, tmp_path / "graphs")
    print(f"{seconds:.1f} s, {peak / 2**20:.0f} MiB")
    assert seconds < 60
    assert peak < 1 << 30
    graphs = tmp_path / "graphs"
    assert (graphs / weights.name).stat().st_ino == weights.stat().st_ino
    assert sum(path.stat().st_size for path in graphs.iterdir() if path.suffix != ".safetensors") < 8 << 20
    manifest = read(graphs)
    assert (manifest.text.layers, manifest.text.hidden, manifest.cache_dtype) == (32, 4096, "float16")
    assert manifest.image.tile_features == 576
    model = onnx.load(graphs / "decoder.onnx", load_external_data=False)
    assert len(model.graph.node) > 32 * 20


def test_links_across_file_systems_are_copies(checkpoint_of, tmp_path):
    memory = Path("/dev/shm")
    if (
        not memory.is_dir()
        or not os.access(memory, os.W_OK)
        or memory.stat().st_dev == tmp_path.stat().st_dev
    ):
        pytest.skip("no second file system to write to")
    source = checkpoint_of("llama-old")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        export_checkpoint(source, Path(folder) / "graphs", link=True)
        for path in source.glob("*.safetensors"):
            copy = Path(folder) / "graphs" / path.name
            assert copy.stat().st_dev != path.stat().st_dev
            assert copy.read_bytes() == path.read_bytes()
        onnx.checker.check_model(str(Path(folder) / "graphs" / "decoder.onnx"), full_check=True)


@shapes
def test_export_twice_gives_the_same_bytes(name, checkpoint_of, graphs_of, tmp_path):
    export_checkpoint(checkpoint_of(name), tmp_path / "again")
    for path in graphs_of(name).iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
