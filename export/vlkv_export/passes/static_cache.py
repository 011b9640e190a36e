"""Caches of one capacity, updated in place: what TensorRT's KV cache layer asks of its TensorScatter."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import operand, sizes

SLOTS = 2


def fix_capacity(model: ir.Model, capacity: int) -> int:
    """Gives `capacity` slots to each cache.

    A cache is a graph input that one TensorScatter alone reads, and its update is a graph output.

    Returns:
        How many caches; a graph where one of them is anything else is left as it is.
    """
    scatters = [node for node in model.graph if node.op_type == "TensorScatter" and node.domain == ""]
    if not all(_is_in_place(node) for node in scatters):
        return 0
    slots = [sizes(operand(node, 0))[SLOTS] for node in scatters]
    names = {size.value for size in slots if isinstance(size, ir.SymbolicDim)}
    for value in _values(model):
        if value.shape is not None:
            fixed = [
                capacity if isinstance(d, ir.SymbolicDim) and d.value in names else d for d in value.shape
            ]
            value.shape = ir.Shape(fixed)
    return len(scatters)


def _is_in_place(node: ir.Node) -> bool:
    cache, result = operand(node, 0), node.outputs[0]
    alone = len(list(cache.uses())) == 1
    named = (
        cache.shape is not None and len(cache.shape) == 4 and isinstance(cache.shape[SLOTS], ir.SymbolicDim)
    )
    return cache.is_graph_input() and result.is_graph_output() and alone and named


def _values(model: ir.Model) -> list[ir.Value]:
    made = [value for node in model.graph for value in node.outputs]
    return [*model.graph.inputs, *made]
