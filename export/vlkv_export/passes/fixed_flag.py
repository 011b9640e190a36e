"""One branch of an If becomes the graph: for builders that fail on a Loop inside an If."""

from __future__ import annotations

import onnx_ir as ir


def fix_flag(model: ir.Model, name: str, value: bool) -> int:
    """Takes the branch of each If that the graph's boolean input `name` decides, where it decides nothing else.

    Returns:
        How many Ifs went; with them goes the input.
    """
    graph = model.graph
    flags = [flag for flag in graph.inputs if flag.name == name and flag.dtype == ir.DataType.BOOL]
    users = [node for flag in flags for node, _ in flag.uses()]
    if not users or any(node.op_type != "If" or node.graph is not graph for node in users):
        return 0
    for node in users:
        branch = node.attributes["then_branch" if value else "else_branch"].as_graph()
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
