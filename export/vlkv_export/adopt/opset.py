"""Converts graphs of opset 13 to 24 to vlkv's opset; only these operators changed their signatures in between."""

from __future__ import annotations

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv_export.ops import OPSET
from vlkv_export.passes.edit import constant

OLDEST = 13
AXES = {
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
}
"""Operators whose axes were an attribute before opset 18 and are an input since."""


def raise_opset(model: ir.Model) -> int:
    """Converts the graph's nodes to vlkv's opset; returns the number of changed nodes.

    Raises:
        CheckpointError: the graph's opset is older than 13 or newer than vlkv's.
    """
    graph, changed = model.graph, 0
    version = graph.opset_imports.get("", OPSET)
    if not OLDEST <= version <= OPSET:
        raise CheckpointError(f"the graph is of ONNX opset {version}; expected {OLDEST} to {OPSET}")
    if version < 18:
        for node in graph.all_nodes():
            changed += _axes(graph, node) or _split(node)
    graph.opset_imports[""] = OPSET
    return changed


def _axes(graph: ir.Graph, node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in AXES or "axes" not in node.attributes:
        return False
    axes = list(node.attributes.get_ints("axes"))
    del node.attributes["axes"]
    name = f"axes.{'_'.join(map(str, axes))}"
    node.resize_inputs(2)
    node.replace_input_with(1, constant(graph, name, axes, ir.DataType.INT64))
    return True


def _split(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Split" or len(node.inputs) > 1:
        return False
    node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    return True
