"""Makes the decoder return the query rows of the observation window, for a runtime that scores them itself.

`Score(rows, keys, position)` is removed, and `query.{l} [B,Hq,W,D]` becomes an output. With W = 0 the gather of rows
is empty, so a step that observes nothing costs nothing. The runtime scores with a scale of 1/sqrt(D): the rows of a
graph with another are multiplied by what is missing.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import constant, dtype_of, new_node, observed_heads, operand, sizes


def apply(model: ir.Model) -> int:
    """Removes the outputs `score.{l}` and `sparsity`, and makes the query of each Score node an output.

    Applies to: every Score node of the main graph.

    Returns:
        The number of Score nodes whose outputs were removed.
    """
    graph = model.graph
    nodes = [node for node in graph if node.domain == DOMAIN and node.op_type == "Score"]
    if not nodes:
        return 0
    kept = [
        value
        for value in graph.outputs
        if value.name != "sparsity" and not str(value.name).startswith("score.")
    ]
    for layer, node in enumerate(nodes):
        query, keys = operand(node, 0), operand(node, 1)
        query = _scaled(graph, node, query, keys)
        query.name = f"query.{layer}"
        query.type = ir.TensorType(dtype_of(keys))
        query.shape = ir.Shape(["B", observed_heads(node), "W", sizes(keys)[3]])
        kept.append(query)
    graph.outputs.clear()
    graph.outputs.extend(kept)
    return len(nodes)


def _scaled(graph: ir.Graph, node: ir.Node, query: ir.Value, keys: ir.Value) -> ir.Value:
    """The rows, times what their scale is of 1/sqrt(D)."""
    dim = sizes(keys)[3]
    factor = node.attributes.get_float("scale", 0.0) * math.sqrt(dim) if isinstance(dim, int) else 1.0
    if not factor or math.isclose(factor, 1.0, rel_tol=1e-6):
        return query
    scaled = ir.Value(name=f"{node.name}/scaled", type=ir.TensorType(dtype_of(keys)))
    times = constant(graph, f"{node.name}/factor", factor, dtype_of(keys))
    graph.insert_before(node, [new_node("Mul", [query, times], [scaled], name=f"{node.name}/Mul")])
    return scaled
