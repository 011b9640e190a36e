"""The decoder gives out the observed query rows in place of their scores, for a runtime with native operators.

`Score(rows, keys, position)` goes; `query.{l} [B,Hq,W,D]` becomes an output. With W = 0 that is a gather of nothing,
so that a step which observes nothing costs nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.graph.builder import DOMAIN


def give_out_observed_rows(model: ir.Model) -> int:
    """Removes the graph's score and sparsity outputs and makes each Score node's query an output."""
    graph = model.graph
    nodes = [node for node in graph if node.domain == DOMAIN and node.op_type == "Score"]
    if not nodes:
        return 0
    kept = [
        value for value in graph.outputs if value.name != "sparsity" and not value.name.startswith("score.")
    ]
    for layer, node in enumerate(nodes):
        query, keys = node.inputs[0], node.inputs[1]
        query.name = f"query.{layer}"
        query.type = ir.TensorType(keys.dtype)
        heads = int(query.producer().inputs[0].producer().inputs[1].const_value.numpy()[2])
        query.shape = ir.Shape(["B", heads, "W", keys.shape[3]])
        kept.append(query)
    graph.outputs.clear()
    graph.outputs.extend(kept)
    return len(nodes)
