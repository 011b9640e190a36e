"""Makes a float32 graph compute in float16 or bfloat16, except where float32 is needed.

RoPE's angles stay in float32, as 16 bits can't hold positions; so do Score's results and the scores that Evict ranks,
the inputs (pictures and embeddings) and the outputs (logits and features).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import maker, new_node, operand, producer, tensor_of

FLOAT = ir.DataType.FLOAT
FLOATS = (FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
TABLES = {("", "RotaryEmbedding"): (1, 2), (DOMAIN, "Evict"): (2,)}
"""Inputs that are computed in float32; RoPE's are then cast, Evict's stays."""
CACHES = {("", "TensorScatter"): (0,), (DOMAIN, "Evict"): (0, 1)}
"""Inputs that the caller holds in the graph's dtype."""


def apply(model: ir.Model, *, dtype: ir.DataType, converted: Mapping[str, ir.TensorProtocol]) -> int:
    """Retypes values, casts and weights to `dtype`, and inserts casts where float32 values enter.

    Applies to: all float values of the main graph, except the float32 parts named above.
    Requires: Score and Evict are still nodes (this pass runs before `function_bodies` and `plugin_nodes`).

    Args:
        model: the graph; changed in place.
        dtype: FLOAT16 or BFLOAT16.
        converted: tensors of `dtype` by name, for initializers of another dtype; others are converted here.

    Returns:
        The number of initializers replaced.
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
    """The nodes that compute float32 tables, back to the graph's inputs."""
    tables = [node.inputs[index] for node in graph for index in TABLES.get((node.domain, node.op_type), ())]
    # tables that are 16-bit already: the float32 values that they are cast from
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
    """All nodes that depend on an output of Score."""
    open_nodes = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, "Score")]
    found: set[ir.Node] = set()
    while open_nodes:
        for value in open_nodes.pop().outputs:
            users = {node for node, _ in value.uses()} - found
            found |= users
            open_nodes.extend(users)
    return found
