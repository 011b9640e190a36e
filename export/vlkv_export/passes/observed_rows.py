"""The decoder gives out the observed query rows in place of their scores, for a runtime with native operators.

`Score(rows, keys, position)` goes; `query.{l} [B,Hq,W,D]` becomes an output. With W = 0 that is a gather of nothing,
so that a step which observes nothing costs nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import dtype_of, observed_heads, operand, sizes


def give_out_observed_rows(model: ir.Model) -> int:
    """Removes the graph's score and sparsity outputs and makes each Score node's query an output."""
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
        query.name = f"query.{layer}"
        query.type = ir.TensorType(dtype_of(keys))
        query.shape = ir.Shape(["B", observed_heads(node), "W", sizes(keys)[3]])
        kept.append(query)
    graph.outputs.clear()
    graph.outputs.extend(kept)
    return len(nodes)
