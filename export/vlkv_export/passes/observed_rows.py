"""Makes the decoder return the query rows of the observation window, for a runtime that scores them itself.

`Score(rows, keys, position)` is removed, and `query.{l} [B,Hq,W,D]` becomes an output. With W = 0 the gather of rows
is empty, so a step that observes nothing costs nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import dtype_of, observed_heads, operand, sizes


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
        query.name = f"query.{layer}"
        query.type = ir.TensorType(dtype_of(keys))
        query.shape = ir.Shape(["B", observed_heads(node), "W", sizes(keys)[3]])
        kept.append(query)
    graph.outputs.clear()
    graph.outputs.extend(kept)
    return len(nodes)
