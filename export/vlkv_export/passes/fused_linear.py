"""Lets `vlkv.native.Linear` do what stands before and after it: RMSNorm, SwiGLU, and the addition of the residual.

A node costs microseconds whatever it does, and a decode step of a small model takes a few thousand of them.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import NATIVE, has_only, like, new_node, operand, producer

FLOAT = ir.DataType.FLOAT


def apply(model: ir.Model) -> int:
    """Joins nodes with the Linear that alone uses them, or whose result they alone use.

    Applies to: an RMSNormalization over the last axis; `Mul(Swish(x), y)` or `Mul(Mul(x, Sigmoid(x)), y)` of results
        of one Linear, before a Linear; an Add of a Linear's result and a value of the graph with as many elements.
    Requires: `native_linear` and `float32` ran before.

    Returns:
        The number of nodes joined with a Linear.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        if (node.domain, node.op_type) == (NATIVE, "Linear"):
            count += _join(graph, node)
    return count


def _join(graph: ir.Graph, node: ir.Node) -> int:
    """Replaces one Linear and its neighbours by a Linear; returns how many neighbours it had."""
    inputs, attributes = list(node.inputs), {name: attr.value for name, attr in node.attributes.items()}
    added = _addition(node)
    before: list[ir.Node] = []
    if added is not None:
        inputs.append(added[1])
        attributes["residual"] = 1
    if (norm := _norm(node)) is not None:
        before = [norm]
        inputs[0] = norm.inputs[0]
        inputs.append(norm.inputs[1])
        attributes |= {"norm": 1, "epsilon": norm.attributes.get_float("epsilon", 1e-5)}
    elif (gate := _gate(node)) is not None:
        before, inputs[0], gated = gate
        inputs.append(gated)
        attributes["gated"] = 1
    if not before and added is None:
        return 0
    last = node if added is None else added[0]
    results = [like(value) for value in last.outputs]
    joined = new_node("Linear", inputs, results, attributes, domain=NATIVE, name=node.name)
    graph.insert_before(last, [joined])
    for old, new in zip(last.outputs, results, strict=True):
        if old.is_graph_output():
            graph.outputs[list(graph.outputs).index(old)] = new
        ir.convenience.replace_all_uses_with(old, new)
    if added is not None:
        graph.remove(added[0], safe=True)
    for one in (node, *before):
        graph.remove(one, safe=True)
    return len(before) + int(added is not None)


def _alone(value: ir.Value | None) -> bool:
    """Whether one node uses the value, once, and the graph does not return it."""
    return value is not None and len(list(value.uses())) == 1 and not value.is_graph_output()


def _norm(node: ir.Node) -> ir.Node | None:
    """The RMSNormalization that makes the input of a Linear."""
    norm = producer(node.inputs[0], "RMSNormalization")
    if norm is None or not _alone(node.inputs[0]) or not has_only(norm, "epsilon", "axis", "stash_type"):
        return None
    scale = operand(norm, 1)
    plain = norm.attributes.get_int("axis", -1) == -1 and norm.attributes.get_int("stash_type", 1) == 1
    return norm if plain and scale.is_initializer() and scale.dtype == FLOAT else None


def _gate(node: ir.Node) -> tuple[list[ir.Node], ir.Value, ir.Value] | None:
    """The nodes of SwiGLU, the last first, and its two operands."""
    product = producer(node.inputs[0], "Mul")
    if product is None or not _alone(node.inputs[0]):
        return None
    for index in (0, 1):
        found = _swish(product.inputs[index])
        other = product.inputs[1 - index]
        if found is None or other is None:
            continue
        nodes, x = found
        source = x.producer()
        if source is None or source is not other.producer() or source.op_type != "Linear":
            continue
        return [product, *nodes], x, other
    return None


def _swish(value: ir.Value | None) -> tuple[list[ir.Node], ir.Value] | None:
    """The nodes of `x * sigmoid(x)`, the last first, and x."""
    if not _alone(value):
        return None
    swish = producer(value, "Swish")
    if swish is not None:
        return ([swish], operand(swish, 0)) if swish.attributes.get_float("alpha", 1.0) == 1.0 else None
    product = producer(value, "Mul")
    if product is None:
        return None
    for index in (0, 1):
        sigmoid = producer(operand(product, index), "Sigmoid")
        x = product.inputs[1 - index]
        if sigmoid is not None and sigmoid.inputs[0] is x and x is not None and _alone(sigmoid.outputs[0]):
            return [product, sigmoid], x
    return None


def _addition(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add after a Linear of one product, and what it adds, which is there before it."""
    if len(node.outputs) != 1 or not _alone(node.outputs[0]):
        return None
    (use,) = node.outputs[0].uses()
    other = use.node.inputs[1 - use.idx] if _is_add(use.node) else None
    if other is None or other is node.outputs[0] or not _has_rows(other):
        return None
    return use.node, other


def _is_add(node: ir.Node) -> bool:
    return node.op_type == "Add" and node.domain == ""


def _has_rows(value: ir.Value) -> bool:
    """Whether the value is a residual stream: it has all rows of the call, so that an Add broadcasts nothing."""
    made = value.producer()
    if made is None:
        return value.is_graph_input() and len(value.shape or ()) == 3
    if (made.domain, made.op_type) == (NATIVE, "Linear"):
        return True
    if (made.domain, made.op_type) == ("", "Cast") and value.dtype == FLOAT:
        return _has_rows(operand(made, 0))
    return _is_add(made) and any(_has_rows(operand(made, i)) for i in (0, 1))
