"""Folders of other exporters whose files name files elsewhere are refused before one is read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from vlkv.errors import CheckpointError
from vlkv_export.adopt.folder import load_graph, read_folder

INSIDE = "weights.bin"


def external(name, location, offset="0"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_graph(tensor):
    """A graph with the tensor as a weight."""
    node = helper.make_node("Identity", [tensor.name], ["y"])
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    return helper.make_graph([node], "g", [], out, [tensor])


def as_constant(tensor):
    """A graph with the tensor in a node."""
    node = helper.make_node("Constant", [], ["y"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    return helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])


def in_branch(tensor):
    """A graph with the tensor as a weight of both branches of an If, as Optimum's merged decoders have them."""
    node = helper.make_node("If", ["c"], ["y"], then_branch=in_graph(tensor), else_branch=in_graph(tensor))
    given = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    return helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])


@pytest.mark.parametrize("place", [in_graph, as_constant, in_branch])
@pytest.mark.parametrize(
    ("location", "offset", "message"),
    [
        ("../secret.bin", "0", "lies in '../secret.bin', not beside the graph"),
        ("sub/../../secret.bin", "0", "not beside the graph"),
        ("{}/secret.bin", "0", "not beside the graph"),
        ("absent.bin", "0", "absent.bin is missing"),
        (INSIDE, "4", "has 16 bytes; weight w is bytes 4 to 20"),
    ],
)
def test_weights_elsewhere(tmp_path, place, location, offset, message):
    (tmp_path / "secret.bin").write_bytes(b"s" * 16)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / INSIDE).write_bytes(bytes(16))
    path = folder / "model.onnx"
    given = SimpleNamespace(graph=path)
    path.write_bytes(helper.make_model(place(external("w", INSIDE))).SerializeToString())
    load_graph(given.graph)
    tensor = external("w", location.format(tmp_path), offset)
    path.write_bytes(helper.make_model(place(tensor)).SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        load_graph(given.graph)


@pytest.mark.parametrize("file", ["../model.onnx", "/model.onnx", "..", "onnx/../../model.onnx"])
def test_a_decoder_elsewhere(tmp_path, file):
    (tmp_path / "model.onnx").write_bytes(b"x")
    folder = tmp_path / "folder"
    folder.mkdir()
    config = {"model": {"decoder": {"filename": file, "inputs": {}, "outputs": {}}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"filename .* is not the name of a file beside it"):
        read_folder(folder)
