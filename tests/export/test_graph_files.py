"""Graph directories that name files outside themselves, or lack files, are refused, and nothing is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest

from vlkv.errors import EngineError
from vlkv_export.engine import build_engine


@pytest.fixture
def graphs(graphs_of, tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"secret" * 100_000)
    return Path(shutil.copytree(graphs_of("llama"), tmp_path / "graphs"))


def edit(graphs, name, change):
    """Changes a graph and updates the manifest to match."""
    path = graphs / name
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    relist(graphs, name)


def relist(graphs, name):
    manifest = json.loads((graphs / "manifest.json").read_text())
    data = (graphs / name).read_bytes()
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (graphs / "manifest.json").write_text(json.dumps(manifest))


def set_external(model, **values):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in tensor.external_data:
        entry.value = str(values.get(entry.key, entry.value))


def refused(graphs, match):
    target = graphs.parent / "engine"
    with pytest.raises(EngineError, match=match) as caught:
        build_engine(graphs, target)
    assert str(caught.value).isprintable()
    assert not list(graphs.parent.glob("*engine*"))
    assert not list(graphs.parent.glob(".*"))


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "{}/secret.bin", "sub/../../secret.bin", "unlisted.bin", "", "manifest.json"],
)
@pytest.mark.parametrize("graph", ["decoder.onnx", "vision.onnx"])
def test_weights_outside_the_directory(graphs, graph, location):
    (graphs / "unlisted.bin").write_bytes(bytes(600_000))
    where = location.format(graphs.parent)
    edit(graphs, graph, lambda model: set_external(model, location=where))
    refused(graphs, "which the manifest does not list")


def test_a_constant_of_a_function_outside_the_directory(graphs):
    def change(model):
        tensor = onnx.TensorProto(name="stolen", data_type=onnx.TensorProto.UINT8, dims=[6])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
        node = onnx.helper.make_node("Constant", [], ["stolen"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        model.functions[0].node.insert(0, node)

    edit(graphs, "decoder.onnx", change)
    refused(graphs, "secret.bin")


@pytest.mark.parametrize("offset", [10**9, -8])
def test_weights_beyond_their_file(graphs, offset):
    edit(graphs, "decoder.onnx", lambda model: set_external(model, offset=offset))
    refused(graphs, "weight .* is bytes|not an ONNX model")


@pytest.mark.parametrize("name", ["decoder.onnx", "vision.onnx", "compress.onnx"])
def test_a_graph_that_the_manifest_does_not_list(graphs, name):
    manifest = json.loads((graphs / "manifest.json").read_text())
    del manifest["files"][name]
    (graphs / "manifest.json").write_text(json.dumps(manifest))
    refused(graphs, f"lists no {name}")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_that_leaves_the_directory_needs_a_hash(graphs, name):
    """As an archive may bring one, with a manifest that says the size of the file it wants to have."""
    aside = graphs.parent / "aside.bin"
    (graphs / name).rename(aside)
    (graphs / name).symlink_to("../aside.bin")
    manifest = json.loads((graphs / "manifest.json").read_text())
    hashed = hashlib.sha256(aside.read_bytes()).hexdigest()
    manifest["files"][name] = {"size": aside.stat().st_size, "sha256": None}
    (graphs / "manifest.json").write_text(json.dumps(manifest))
    refused(graphs, f"{name} is a link to a file outside its directory, and the manifest has no hash of it")
    manifest["files"][name]["sha256"] = hashed
    (graphs / "manifest.json").write_text(json.dumps(manifest))
    build_engine(graphs, graphs.parent / "engine")
    assert not (graphs.parent / "engine" / name).is_symlink()


def test_a_link_within_the_directory_needs_none(graphs):
    (graphs / "model.safetensors").rename(graphs / "weights")
    (graphs / "model.safetensors").symlink_to("weights")
    build_engine(graphs, graphs.parent / "engine")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\xff\xff\xff\xff\xff\xff"])
def test_a_graph_that_is_none(graphs, data):
    (graphs / "decoder.onnx").write_bytes(data)
    relist(graphs, "decoder.onnx")
    refused(graphs, "decoder.onnx")
