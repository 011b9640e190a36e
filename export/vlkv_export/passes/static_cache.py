"""Gives caches one fixed capacity, as TensorRT's KV cache layer requires for updates in place."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import operand, sizes

SLOTS = 2


def apply(model: ir.Model, *, capacity: int) -> int:
    """Sets the number of slots of each cache to `capacity`.

    Applies to: a cache that is a graph input with a symbolic capacity, read by one TensorScatter only, whose result is
        a graph output. If any TensorScatter is different, nothing changes.

    Args:
        model: the graph; changed in place.
        capacity: slots of every cache.

    Returns:
        The number of caches.
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
