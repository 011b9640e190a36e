"""What several passes need: reading a pattern upwards and putting a node in another's place."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

MICROSOFT = "com.microsoft"


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The standard node of that type that makes `value`, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def turned_matrix(transpose: ir.Node) -> ir.Value | None:
    """The rank-2 initializer that a Transpose turns, or None."""
    weight = transpose.inputs[0]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return None
    return weight if list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0] else None


def has_only(node: ir.Node, *names: str) -> bool:
    """Whether the node has no attributes but these, so that none of its meaning is lost by ignoring others."""
    return set(node.attributes) <= set(names)


def new_node(
    op_type: str,
    inputs: list[ir.Value | None],
    outputs: list[ir.Value],
    attributes: dict[str, Any] | None = None,
    *,
    domain: str = "",
    name: str | None = None,
) -> ir.Node:
    """A node that makes the given fresh `outputs`."""
    attrs = ir.convenience.convert_attributes(attributes or {})
    return ir.Node(domain, op_type, inputs, attrs, outputs=outputs, name=name)


def like(value: ir.Value) -> ir.Value:
    """A fresh value with the name, type and shape of another, to take its place."""
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def replace(graph: ir.Graph, old: ir.Node, nodes: list[ir.Node], values: dict[ir.Value, ir.Value]) -> None:
    """Puts `nodes` where `old` stands and lets the users of each key of `values` use its value."""
    graph.insert_before(old, nodes)
    for before, after in values.items():
        if before.is_graph_output():
            graph.outputs[list(graph.outputs).index(before)] = after
        ir.convenience.replace_all_uses_with(before, after)


def constant(graph: ir.Graph, name: str, values: object, dtype: ir.DataType) -> ir.Value:
    """An initializer of that name, made once."""
    if name not in graph.initializers:
        tensor = ir.tensor(values, dtype=dtype, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
