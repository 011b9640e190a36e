"""Attention without a cache or mask (the vision tower's) becomes ONNX Runtime's `MultiHeadAttention`.

Its CPU kernel works in tiles; the one of the standard operator builds the whole matrix of weights.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import MICROSOFT, has_only, like, new_node, replace


def use_multi_head_attention(model: ir.Model) -> int:
    """Rewrites each standard Attention with three inputs of rank 3, equal head counts, and nothing else said."""
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
