"""Uses the native attention operators in place of ONNX Runtime's `GroupQueryAttention`.

For one token per prompt, `GroupQueryAttention` reads a cache once for each query head, which takes most of the time
when decoding from a long prompt; for chunks of prompts its products are slower than the native operator's
(docs/notes/ops.md). The native operators have no window: in a layer with one, `If(S == 1 and total <= window)`
holds the operator for one token and the former node, and both update the caches in place. The native operators read
their layer's lengths from those of all layers; the gathers go, or move into the other branch.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.passes.edit import (
    MICROSOFT,
    NATIVE,
    attend_instead,
    constant,
    first_slots,
    like,
    new_node,
    operand,
    producer,
    replace,
    row_of_layer,
)

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def apply(model: ir.Model, *, many: int = 0) -> int:
    """Replaces each GroupQueryAttention by AttendFloat32, or by an If whose other branch is Attend.

    Applies to: a GroupQueryAttention without rotation, mask or further inputs.
    Requires: `group_query_attention` ran before.

    Args:
        model: changed in place.
        many: the precision of prompts' products, as the operator has it: 0 and 2 float32, 1 bfloat16. A layer with a
            window keeps ONNX Runtime's, in float32.

    Returns:
        The number of GroupQueryAttention nodes replaced.
    """
    graph = model.graph
    found = [node for node in graph if _fits(node)]
    if not found:
        return 0
    single, first = _single(graph), first_slots(graph)
    for node in found:
        windowed = node.attributes.get_int("local_window_size", 0) > 0
        if not windowed and attend_instead(graph, node, "AttendFloat32", first, many):
            continue
        results = [like(value) for value in node.outputs]
        branches = {
            "then_branch": _branch(node, "one", _native),
            "else_branch": _branch(node, "many", _same),
        }
        condition, nodes = _inside(graph, node, single)
        chosen = new_node("If", [condition], results, branches, name=node.name)
        replace(graph, node, [*nodes, chosen], dict(zip(node.outputs, results, strict=True)))
        graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
    model.graph.opset_imports[NATIVE] = 1
    return len(found)


def _fits(node: ir.Node) -> bool:
    if node.op_type != "GroupQueryAttention" or node.domain != MICROSOFT:
        return False
    plain = {"num_heads", "kv_num_heads", "scale", "do_rotary", "local_window_size"}
    return (
        set(node.attributes) <= plain
        and not node.attributes.get_int("do_rotary", 0)
        and len(node.inputs) == 7
    )


def _single(graph: ir.Graph) -> ir.Value:
    """Whether the call has one token per prompt, from the input `position_ids [B,S]`."""
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    tokens, single = ir.Value(name="tokens"), ir.Value(name="one_token", type=ir.TensorType(ir.DataType.BOOL))
    one = constant(graph, "one_token.size", [1], INT64)
    nodes = [
        new_node("Shape", [positions], [tokens], {"start": 1, "end": 2}, name="one_token/Shape"),
        new_node("Equal", [tokens, one], [single], name="one_token/Equal"),
    ]
    graph.insert_before(next(iter(graph)), nodes)
    return single


def _inside(graph: ir.Graph, node: ir.Node, single: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """Whether the call has one token a prompt and every slot is inside the node's window; the nodes that tell it."""
    window = node.attributes.get_int("local_window_size", 0)
    if not window:
        return single, []
    size = constant(graph, f"window.{window}", window, INT32)
    within, both = (
        ir.Value(name=f"{node.name}/{name}", type=ir.TensorType(ir.DataType.BOOL))
        for name in ("within", "both")
    )
    return both, [
        new_node("LessOrEqual", [operand(node, 6), size], [within], name=f"{node.name}/LessOrEqual"),
        new_node("And", [single, within], [both], name=f"{node.name}/And"),
    ]


def _branch(node: ir.Node, kind: str, make: Callable[[ir.Node, list[ir.Value]], list[ir.Node]]) -> ir.Graph:
    """A subgraph of few nodes, which reads values of the outer graph."""
    results = [ir.Value(name=f"{value.name}.{kind}", type=value.type) for value in node.outputs]
    return ir.Graph([], results, nodes=make(node, results), name=f"{node.name}/{kind}")


def _native(node: ir.Node, results: list[ir.Value]) -> list[ir.Node]:
    attributes: dict[str, float | int] = {"scale": node.attributes.get_float("scale", 0.0)}
    last, layer = row_of_layer(operand(node, 5))
    if layer is not None:
        attributes["layer"] = layer
    inputs = [*node.inputs[:5], last]
    return [new_node("Attend", inputs, results, attributes, domain=NATIVE, name=f"{node.name}/Attend")]


def _same(node: ir.Node, results: list[ir.Value]) -> list[ir.Node]:
    inputs, nodes = list(node.inputs), []
    for index in (5, 6):
        gather = producer(inputs[index], "Gather")
        if gather is None:
            continue
        own = ir.Value(name=f"{gather.outputs[0].name}.many", type=gather.outputs[0].type)
        nodes.append(new_node("Gather", gather.inputs, [own], {"axis": 0}, name=f"{gather.name}/chunk"))
        inputs[index] = own
    chunk = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        node.attributes.values(),
        outputs=results,
        name=f"{node.name}/chunk",
    )
    return [*nodes, chunk]
