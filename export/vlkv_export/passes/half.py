"""A graph computes in float16 or bfloat16, but for what has to stay in float32.

Those are RoPE's angles, whose positions 16 bits can't hold, the scores that Evict ranks, Score's results, pictures and
embeddings on their way in, logits and features on their way out.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import maker, new_node, operand, producer, tensor_of

FLOAT = ir.DataType.FLOAT
FLOATS = (FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
TABLES = {("", "RotaryEmbedding"): (1, 2), (DOMAIN, "Evict"): (2,)}
"""Inputs that are made in float32; RoPE's are cast, Evict's stays."""
CACHES = {("", "TensorScatter"): (0,), (DOMAIN, "Evict"): (0, 1)}
"""Inputs that a caller holds in the dtype of the graph."""


def compute_in_half(model: ir.Model, dtype: ir.DataType, converted: Mapping[str, ir.TensorProtocol]) -> int:
    """Retypes values, casts and weights, and casts where float32 meets them.

    Args:
        model: the graph; changed in place.
        dtype: FLOAT16 or BFLOAT16.
        converted: the tensors in that dtype of initializers that are in another, by name.

    Returns:
        How many weights were exchanged.
    """
    graph = model.graph
    wide = _makers(graph) | _users_of_scores(graph)
    casts: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node in wide:
            continue
        sinks = TABLES.get((node.domain, node.op_type), ())
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            enters = value.is_graph_input() and not _is_cache(value)
            if (
                node.op_type != "Cast"
                and (enters or (index in sinks and node.domain == ""))
                and value.dtype == FLOAT
            ):
                if value not in casts:
                    casts[value] = ir.Value(
                        name=f"{value.name}.narrow", type=ir.TensorType(dtype), shape=value.shape
                    )
                    graph.insert_before(node, [new_node("Cast", [value], [casts[value]], {"to": dtype})])
                if index not in sinks or node.domain == "":
                    node.replace_input_with(index, casts[value])
    count = _exchange(graph, wide, dtype, converted)
    for value in graph.inputs:
        if value.dtype in FLOATS and _is_cache(value):
            value.type = ir.TensorType(dtype)
    for node in graph:
        if node not in wide and (node.domain, node.op_type) != (DOMAIN, "Score"):
            _retype(node, dtype)
    return count


def _retype(node: ir.Node, dtype: ir.DataType) -> None:
    if node.op_type == "Cast" and node.attributes.get_int("to") in FLOATS:
        if node.outputs[0].is_graph_output():
            return
        node.attributes["to"] = ir.AttrInt64("to", dtype)
    for value in node.outputs:
        if value.dtype in FLOATS:
            value.type = ir.TensorType(dtype)


def _exchange(
    graph: ir.Graph, wide: set[ir.Node], dtype: ir.DataType, converted: Mapping[str, ir.TensorProtocol]
) -> int:
    count = 0
    for name, value in graph.initializers.items():
        if value.dtype not in FLOATS or value.dtype == dtype or all(node in wide for node, _ in value.uses()):
            continue
        value.const_value = converted.get(name) or ir.tensor(
            tensor_of(value).numpy().astype(dtype.numpy()), name=name
        )
        value.type = ir.TensorType(dtype)
        count += 1
    return count


def _is_cache(value: ir.Value) -> bool:
    return any(index in CACHES.get((node.domain, node.op_type), ()) for node, index in value.uses())


def _makers(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that make float32 tables, back to the graph's inputs."""
    tables = [node.inputs[index] for node in graph for index in TABLES.get((node.domain, node.op_type), ())]
    # where they are 16-bit already, what they are cast from
    open_values = [
        operand(maker(value), 0) if value is not None and producer(value, "Cast") else value
        for value in tables
    ]
    found: set[ir.Node] = set()
    while open_values:
        value = open_values.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in found:
            found.add(node)
            open_values.extend(node.inputs)
    return found


def _users_of_scores(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that what Score gives out goes through."""
    open_nodes = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, "Score")]
    found: set[ir.Node] = set()
    while open_nodes:
        for value in open_nodes.pop().outputs:
            users = {node for node, _ in value.uses()} - found
            found |= users
            open_nodes.extend(users)
    return found
