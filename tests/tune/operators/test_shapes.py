"""The products of an engine's decoder, against the onnx package; and files that are no graphs."""

from __future__ import annotations

import shutil

import onnx
import pytest

from vlkv.errors import TuneError
from vlkv.tune.operators.shapes import Product, read
from vlkv_export.engine import build_engine

FLOATS = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}


def products(path):
    """The products of each Linear node."""
    graph = onnx.load(path, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Linear":
            continue
        given = {attribute.name: attribute.i for attribute in node.attribute}
        count, bits = given.get("products", 1), given.get("bits", 0)
        for number in range(1, count + 1):
            weight = tensors[node.input[number]]
            if not bits:
                yield Product(weight.dims[1], weight.dims[0], FLOATS[weight.data_type])
                continue
            scales = FLOATS[tensors[node.input[number + count]].data_type]
            block = weight.dims[2] * 8 // bits
            kind = tensors[node.input[number + 2 * count]].data_type if given.get("zeros", 0) else 0
            facts = (
                scales,
                kind == onnx.TensorProto.UINT8,
                kind == onnx.TensorProto.FLOAT16,
                given["many"] == 2,
            )
            yield Product(weight.dims[1] * block, weight.dims[0], "codes", bits, block, *facts)


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_products_are_those_of_the_graph(graphs_of, tmp_path, weights):
    build_engine(graphs_of("llama"), tmp_path / "e", weights=weights)
    wanted = set(products(tmp_path / "e" / "decoder.onnx"))
    assert len(wanted) > 2
    assert set(read(tmp_path / "e").products) == wanted


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"not a graph at all", b"\x3a\x7f\x00"])
def test_a_file_that_is_no_graph_is_refused_in_one_line(built_of, tmp_path, data):
    shutil.copytree(built_of("llama"), tmp_path / "e")
    (tmp_path / "e" / "decoder.onnx").unlink()
    (tmp_path / "e" / "decoder.onnx").write_bytes(data)
    with pytest.raises(TuneError, match=r"decoder\.onnx: not an ONNX file"):
        read(tmp_path / "e")
