"""Replaces Attention without a cache or mask, as in vision towers, by ONNX Runtime's `MultiHeadAttention`.

Its CPU kernel works in tiles; that of the standard operator builds the whole matrix of attention weights.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import MICROSOFT, has_only, like, new_node, replace


def apply(model: ir.Model) -> int:
    """Replaces each plain Attention by a MultiHeadAttention.

    Applies to: an Attention with three inputs `[B,S,heads*D]`, as many KV heads as query heads, and no other
        attributes.

    Returns:
        The number of Attention nodes replaced.
    """
    count = 0
    for node in list(model.graph):
        heads = node.attributes.get_int("q_num_heads", 0)
        if node.op_type != "Attention" or node.domain != "" or len(node.inputs) != 3 or heads == 0:
            continue
        plain = has_only(node, "q_num_heads", "kv_num_heads")
        if node.attributes.get_int("kv_num_heads", 0) != heads or not plain:
            continue
        result = like(node.outputs[0])
        fused = new_node(
            "MultiHeadAttention",
            list(node.inputs),
            [result],
            {"num_heads": heads},
            domain=MICROSOFT,
            name=node.name,
        )
        replace(model.graph, node, [fused], {node.outputs[0]: result})
        model.graph.remove(node, safe=True)
        count += 1
    return count
