"""Replaces the sort in Evict's body by a selection, as TensorRT's TopK returns at most 3840 values.

TensorRT's builder accepts a longer sort with a warning; it then fails at run time.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.ops import DOMAIN, select_highest
from vlkv_export.passes.edit import has_only, new_node, operand, producer, remove_unused_functions, replace


def apply(model: ir.Model) -> int:
    """Replaces each sort of all slots that only marks the best candidates.

    Applies to: the pattern that `_match` describes, as Evict's body has it.
    Requires: Evict's body is inlined (`function_bodies`).

    Returns:
        The number of sorts replaced.
    """
    graph = model.graph
    found = [match for node in list(graph) if (match := _match(node))]
    for ranked, number, free, scatter, totals in found:
        chosen = ir.Value(name=scatter.outputs[0].name, type=scatter.outputs[0].type)
        node = new_node("SelectHighest", [ranked, number, free], [chosen], domain=DOMAIN, name=scatter.name)
        replace(graph, scatter, [node], {scatter.outputs[0]: chosen})
        graph.remove(scatter, safe=True)
        for total in totals:
            total.replace_input_with(0, chosen)
    if found:
        function = select_highest()
        model.functions[function.identifier()] = function
        graph.opset_imports[DOMAIN] = 1
        common.RemoveUnusedNodesPass()(model)
        common.InlinePass()(model)
        remove_unused_functions(model)
    return len(found)


def _match(sort: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Node, list[ir.Node]] | None:
    """Matches `Scatter(order, n * (CumSum(n) <= free))` with `order` from TopK and `n = Gather(number, order)`.

    Returns ranked, number, free, the Scatter, and the sums of the product over all ranks, which equal the sums of the
    Scatter's result over all slots.
    """
    if sort.op_type != "TopK" or sort.domain != "" or not has_only(sort, "axis", "largest", "sorted"):
        return None
    attributes = sort.attributes
    if attributes.get_int("axis", -1) != 2 or not attributes.get_int("largest", 1):
        return None
    shape = producer(sort.inputs[1], "Shape")
    if shape is None or (shape.attributes.get_int("start", 0), shape.attributes.get_int("end", 0)) != (2, 3):
        return None
    values, order = sort.outputs
    users = {node.op_type: node for node, _ in order.uses()}
    unread = not list(values.uses()) and not values.is_graph_output()
    if not unread or set(users) != {"GatherElements", "ScatterElements"} or len(list(order.uses())) != 2:
        return None
    gather, scatter = users["GatherElements"], users["ScatterElements"]
    if any(node.attributes.get_int("axis", 0) != 2 for node in (gather, scatter)) or not has_only(
        scatter, "axis"
    ):
        return None
    product = producer(scatter.inputs[2], "Mul")
    if product is None or product.inputs[0] is not gather.outputs[0] or not _is_nothing(scatter.inputs[0]):
        return None
    cast = producer(product.inputs[1], "Cast")
    compare = producer(cast.inputs[0], "LessOrEqual") if cast else None
    count = producer(compare.inputs[0], "CumSum") if compare else None
    if compare is None or count is None or count.inputs[0] is not gather.outputs[0] or not has_only(count):
        return None
    totals = [node for node, _ in product.outputs[0].uses() if node is not scatter]
    if not all(node.op_type == "ReduceSum" and _is_constant(node.inputs[1], [2]) for node in totals):
        return None
    return operand(sort, 0), operand(gather, 0), operand(compare, 1), scatter, totals


def _is_nothing(value: ir.Value | None) -> bool:
    """Whether the value is `x - x`, an array of zeros."""
    difference = producer(value, "Sub")
    return difference is not None and difference.inputs[0] is difference.inputs[1]


def _is_constant(value: ir.Value | None, numbers: list[int]) -> bool:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor is not None and tensor.numpy().tolist() == numbers
