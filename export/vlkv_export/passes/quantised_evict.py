"""Lets Evict move the codes of int8 and float8 caches, which `quantised_cache` makes.

Where Evict averages codes, their mean is rounded: the scales are constant, so that the mean of the codes times the
scale is the mean of the values.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import like, new_node, operand, replace

INT8, FLOAT16 = ir.DataType.INT8, ir.DataType.FLOAT16


def apply(model: ir.Model, *, dtype: ir.DataType) -> int:
    """Changes the keys and values that Evict takes and gives: it computes with the codes in float16, which holds them.

    Applies to: the Evict node of `compress`, whose keys and values are graph inputs and outputs.
    Requires: `fixed_flag` ran before.

    Returns:
        The number of nodes changed.
    """
    graph = model.graph
    found = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, "Evict")]
    for node in found:
        before, wide = [], []
        for cache in (operand(node, 0), operand(node, 1)):
            cache.type = ir.TensorType(dtype)
            wide.append(ir.Value(name=f"{cache.name}.codes", type=ir.TensorType(FLOAT16), shape=cache.shape))
            before.append(new_node("Cast", [cache], [wide[-1]], {"to": FLOAT16}, name=f"{cache.name}/Cast"))
        results = [like(result) for result in node.outputs]
        after, given = [], list(results)
        for place, result in enumerate(results[:2]):
            codes = ir.Value(name=f"{result.name}.codes", type=ir.TensorType(FLOAT16), shape=result.shape)
            given[place], result.type = codes, ir.TensorType(dtype)
            if dtype == INT8:
                rounded = ir.Value(name=f"{result.name}.rounded", type=codes.type, shape=result.shape)
                after.append(new_node("Round", [codes], [rounded], name=f"{result.name}/Round"))
                codes = rounded
            after.append(new_node("Cast", [codes], [result], {"to": dtype}, name=f"{result.name}/Cast"))
        inputs = [*wide, *node.inputs[2:]]
        attributes = node.attributes.values()
        made = ir.Node(DOMAIN, "Evict", inputs, attributes, outputs=given, name=node.name)
        replace(graph, node, [*before, made, *after], dict(zip(node.outputs, results, strict=True)))
        graph.remove(node, safe=True)
    return len(found)
