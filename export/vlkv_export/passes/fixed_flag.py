"""Fixes a boolean graph input and inlines the If branch that it selects, for builders that fail on a Loop in an If."""

from __future__ import annotations

import onnx_ir as ir


def apply(model: ir.Model, *, name: str, value: bool) -> int:
    """Replaces each If that the flag decides by one of its branches, and removes the flag and the other branch.

    The branch's weights move to the graph; one whose name is taken there gets the If's name before its own.

    Applies to: a boolean graph input `name` whose only uses are conditions of If nodes of the main graph.

    Args:
        model: the graph; changed in place.
        name: the graph input.
        value: the value to fix it to.

    Returns:
        The number of If nodes replaced.
    """
    graph = model.graph
    flags = [flag for flag in graph.inputs if flag.name == name and flag.dtype == ir.DataType.BOOL]
    users = [node for flag in flags for node, _ in flag.uses()]
    if not users or any(node.op_type != "If" or node.graph is not graph for node in users):
        return 0
    for node in users:
        branch = node.attributes["then_branch" if value else "else_branch"].as_graph()
        _take_weights(graph, branch, node)
        _release(node.attributes["else_branch" if value else "then_branch"].as_graph())
        results = list(branch.outputs)
        nodes = list(branch)
        branch.outputs.clear()
        branch.remove(nodes)
        graph.insert_before(node, nodes)
        for before, after in zip(node.outputs, results, strict=True):
            if before.is_graph_output():
                after.name, after.type, after.shape = before.name, before.type, before.shape
                graph.outputs[list(graph.outputs).index(before)] = after
            ir.convenience.replace_all_uses_with(before, after)
        graph.remove(node, safe=True)
    graph.inputs.remove(flags[0])
    return len(users)


def _take_weights(graph: ir.Graph, branch: ir.Graph, node: ir.Node) -> None:
    for name, weight in list(branch.initializers.items()):
        del branch.initializers[name]
        if name in graph.initializers:
            weight.name = f"{node.name}.{name}"
        graph.register_initializer(weight)


def _release(branch: ir.Graph) -> None:
    """Lets a branch that is dropped read nothing: what both branches read has one reader less."""
    for node in ir.traversal.RecursiveGraphIterator(branch):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
