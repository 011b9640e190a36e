"""Replaces `MatMul(x, Transpose(weight))` by ONNX Runtime's `FusedMatMul`, which reads the weight as it is stored.

Without it ONNX Runtime folds every transposition into a second copy of the weight when it loads the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import MICROSOFT, like, new_node, producer, replace, turned_matrix


def apply(model: ir.Model) -> int:
    """Replaces each product with a transposed weight.

    Applies to: a MatMul whose second input is the transposition of an initializer of rank 2.

    Returns:
        The number of MatMul nodes replaced.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain != "":
            continue
        transpose = producer(node.inputs[1], "Transpose")
        weight = turned_matrix(transpose) if transpose is not None else None
        if weight is None:
            continue
        result = like(node.outputs[0])
        fused = new_node(
            "FusedMatMul",
            [node.inputs[0], weight],
            [result],
            {"transB": 1},
            domain=MICROSOFT,
            name=node.name,
        )
        replace(model.graph, node, [fused], {node.outputs[0]: result})
        model.graph.remove(node, safe=True)
        count += 1
    return count
