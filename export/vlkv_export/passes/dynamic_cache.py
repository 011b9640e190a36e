"""Replaces TensorScatter by ScatterElements, for builders whose TensorScatter takes static caches only.

The updated cache is a new tensor: a graph's input and output cache must not share memory.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import constant, has_only, like, new_node, operand, replace

INT64 = ir.DataType.INT64
SLOTS = 2


def apply(model: ir.Model) -> int:
    """Replaces each TensorScatter into a cache by a ScatterElements.

    Applies to: a linear TensorScatter with write indices, along the slots of a cache `[B,Hkv,C,D]`.

    Returns:
        The number of TensorScatter nodes replaced.
    """
    graph = model.graph
    count = 0
    indices: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type != "TensorScatter" or node.domain != "" or not _is_linear(node):
            continue
        cache, rows, start = (operand(node, index) for index in range(3))
        nodes: list[ir.Node] = []
        if start not in indices:
            indices[start] = _slots(graph, rows, start, nodes)
        result = like(node.outputs[0])
        shape = ir.Value(name=f"{node.name}/shape")
        index = ir.Value(name=f"{node.name}/slots")
        nodes += [
            new_node("Shape", [rows], [shape], name=f"{node.name}/Shape"),
            new_node("Expand", [indices[start], shape], [index], name=f"{node.name}/Expand"),
            new_node("ScatterElements", [cache, index, rows], [result], {"axis": SLOTS}, name=node.name),
        ]
        replace(graph, node, nodes, {node.outputs[0]: result})
        graph.remove(node, safe=True)
        count += 1
    return count


def _is_linear(node: ir.Node) -> bool:
    axis, mode = node.attributes.get_int("axis", -2), node.attributes.get_string("mode", "linear")
    return (
        len(node.inputs) == 3 and axis in (-2, SLOTS) and mode == "linear" and has_only(node, "axis", "mode")
    )


def _slots(graph: ir.Graph, rows: ir.Value, start: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """The slot of each of the rows `[B,Hkv,S,D]`, as `[B,1,S,1]`."""

    def make(op_type: str, operands: list[ir.Value], **attributes: object) -> ir.Value:
        result = ir.Value(name=f"{start.name}.slots.{op_type}.{len(nodes)}")
        nodes.append(new_node(op_type, operands, [result], attributes, name=result.name))
        return result

    zero, one = constant(graph, "zero_i64", 0, INT64), constant(graph, "one_i64", 1, INT64)
    tokens = make("Squeeze", [make("Shape", [rows], start=2, end=3), constant(graph, "axis_0", [0], INT64)])
    row = make(
        "Unsqueeze", [make("Range", [zero, tokens, one]), constant(graph, "axes_0_1_3", [0, 1, 3], INT64)]
    )
    first = make("Unsqueeze", [start, constant(graph, "axes_1_2_3", [1, 2, 3], INT64)])
    return make("Add", [first, row])
