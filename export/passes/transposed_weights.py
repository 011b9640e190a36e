"""`MatMul(x, Transpose(weight))` becomes ONNX Runtime's `FusedMatMul`, which reads the weight as it is stored.

Otherwise loading folds every transposition into a second copy of the weights.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv.export.passes.edit import MICROSOFT, like, new_node, producer, replace


def fuse_transposed_weights(model: ir.Model) -> int:
    """Rewrites each product with a transposed rank-2 initializer."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain != "":
            continue
        transpose = producer(node.inputs[1], "Transpose")
        if transpose is None or not _is_turned_matrix(transpose):
            continue
        result = like(node.outputs[0])
        fused = new_node(
            "FusedMatMul",
            [node.inputs[0], transpose.inputs[0]],
            [result],
            {"transB": 1},
            domain=MICROSOFT,
            name=node.name,
        )
        replace(model.graph, node, [fused], {node.outputs[0]: result})
        model.graph.remove(node, safe=True)
        count += 1
    return count


def _is_turned_matrix(transpose: ir.Node) -> bool:
    weight = transpose.inputs[0]
    if not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return False
    return list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0]
