"""Helpers of the passes: matching a pattern upwards from a value, and replacing nodes. No pass itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from vlkv.errors import EngineError

MICROSOFT = "com.microsoft"
NATIVE = "vlkv.native"
"""The domain of the operators that `vlkv._native` registers with ONNX Runtime."""


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of the standard domain and of type `op_type` that produces `value`, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def operand(node: ir.Node, index: int) -> ir.Value:
    """The node's input number `index`. Raises `EngineError` if it is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise EngineError(f"{node.op_type} {node.name!r} has no input {index}")
    return value


def maker(value: ir.Value) -> ir.Node:
    """The node that produces `value`. Raises `EngineError` for a graph input or a weight."""
    node = value.producer()
    if node is None:
        raise EngineError(f"no node produces {value.name!r}")
    return node


def sizes(value: ir.Value) -> ir.Shape:
    """The shape of `value`. Raises `EngineError` if the graph does not state it."""
    if value.shape is None:
        raise EngineError(f"the shape of {value.name!r} is not known")
    return value.shape


def dtype_of(value: ir.Value) -> ir.DataType:
    """The dtype of `value`. Raises `EngineError` if the graph does not state it."""
    if value.dtype is None:
        raise EngineError(f"the dtype of {value.name!r} is not known")
    return value.dtype


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of the constant `value`. Raises `EngineError` if it is not a constant."""
    if value.const_value is None:
        raise EngineError(f"{value.name!r} is not a constant")
    return value.const_value


def numbers(value: ir.Value) -> NDArray[Any]:
    """The numbers of the constant `value`. Raises `EngineError` if it is not a constant."""
    return tensor_of(value).numpy()


def observed_heads(score: ir.Node) -> int:
    """The number of query heads of a Score node, whose query is `Transpose(Reshape(x, [0,0,heads,D]))`."""
    reshape = maker(operand(maker(operand(score, 0)), 0))
    return int(numbers(operand(reshape, 1))[2])


def remove_unused_functions(model: ir.Model) -> None:
    """Removes the functions that no node calls."""
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]


def turned_matrix(transpose: ir.Node) -> ir.Value | None:
    """The rank-2 initializer that a Transpose transposes, or None."""
    weight = transpose.inputs[0]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return None
    return weight if list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0] else None


def has_only(node: ir.Node, *names: str) -> bool:
    """Whether the node has no attributes other than `names`, so that a pass ignores nothing that matters."""
    return set(node.attributes) <= set(names)


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    outputs: list[ir.Value],
    attributes: dict[str, Any] | None = None,
    *,
    domain: str = "",
    name: str | None = None,
) -> ir.Node:
    """A node that produces the given new `outputs`."""
    attrs = ir.convenience.convert_attributes(attributes or {})
    return ir.Node(domain, op_type, inputs, attrs, outputs=outputs, name=name)


def like(value: ir.Value) -> ir.Value:
    """A new value with the name, type and shape of another, to replace it."""
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def replace(graph: ir.Graph, old: ir.Node, nodes: list[ir.Node], values: dict[ir.Value, ir.Value]) -> None:
    """Inserts `nodes` before `old`, and replaces each key of `values` by its value in all users."""
    graph.insert_before(old, nodes)
    for before, after in values.items():
        if before.is_graph_output():
            graph.outputs[list(graph.outputs).index(before)] = after
        ir.convenience.replace_all_uses_with(before, after)


def constant(graph: ir.Graph, name: str, values: float | list[int], dtype: ir.DataType) -> ir.Value:
    """The initializer `name`; it is made if the graph lacks it."""
    if name not in graph.initializers:
        add_initializer(graph, ir.tensor(np.array(values, dtype.numpy()), dtype=dtype, name=name))
    return graph.initializers[name]


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer of the tensor's name; it is made if the graph lacks it."""
    name = str(tensor.name)
    if name not in graph.initializers:
        shape = ir.Shape(tensor.shape.numpy())
        graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        )
    return graph.initializers[name]


def window_of(mask: ir.Value | None) -> tuple[ir.Value, int] | None:
    """`And(causal, slot > last - window)` read back: the causal mask and the window."""
    both = producer(mask, "And")
    after = producer(both.inputs[1], "Greater") if both else None
    first = producer(after.inputs[1], "Sub") if after else None
    size = operand(first, 1).const_value if first else None
    if both is None or size is None:
        return None
    return operand(both, 0), int(size.numpy())


def row_of_layer(lengths: ir.Value) -> tuple[ir.Value, int | None]:
    """The lengths `[L,B]` of all layers that `lengths [B]` is a row of, and the row; itself and None if it is none."""
    gather = producer(lengths, "Gather")
    if gather is None or gather.attributes.get_int("axis", 0) != 0 or operand(gather, 1).const_value is None:
        return lengths, None
    return operand(gather, 0), int(numbers(operand(gather, 1)))


def first_slots(graph: ir.Graph) -> ir.Value:
    """The slots `[L,B]` int32 of the first new tokens: the graph input `length`."""
    length = next(value for value in graph.inputs if value.name == "length")
    first = ir.Value(name="first_slots", type=ir.TensorType(ir.DataType.INT32))
    cast = new_node("Cast", [length], [first], {"to": ir.DataType.INT32}, name="first_slots/Cast")
    graph.insert_before(next(iter(graph)), [cast])
    return first


def attend_instead(graph: ir.Graph, node: ir.Node, operator: str, first: ir.Value, many: int) -> bool:
    """Replaces a GroupQueryAttention by a native operator for any number of tokens per prompt.

    `many` is the operator's attribute, the precision of products of several tokens.

    Returns:
        Whether it was replaced; it is not where its lengths are not those of a layer.
    """
    last, layer = row_of_layer(operand(node, 5))
    if layer is None:
        return False
    results = [like(value) for value in node.outputs]
    attributes = {"scale": node.attributes.get_float("scale", 0.0), "layer": layer, "many": many}
    inputs = [*node.inputs[:5], last, first]
    attend = new_node(operator, inputs, results, attributes, domain=NATIVE, name=node.name)
    replace(graph, node, [attend], dict(zip(node.outputs, results, strict=True)))
    graph.remove(node, safe=True)
    return True
