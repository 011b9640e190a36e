"""Names Score and Evict nodes so that TensorRT's parser resolves them to plugin layers, other runtimes to functions.

The parser looks up a plugin by op_type, `plugin_version` (absent: "1") and `plugin_namespace`; if the latter is
present, the plugin takes precedence over a function. It accepts only one-dimensional shape inputs, but Evict's
capacity is a scalar.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import constant, new_node, operand

CAPACITY = 7
"""The index of Evict's input `capacity`."""
PLUGINS = {"Score": "VlkvScore", "Evict": "VlkvEvict"}


def apply(model: ir.Model) -> int:
    """Renames each Score and Evict node to its plugin's name, and adds functions of those names that call the original.

    Applies to: every Score and Evict node of the main graph.

    Returns:
        The number of nodes renamed.
    """
    graph = model.graph
    nodes = [node for node in graph if node.domain == DOMAIN and node.op_type in PLUGINS]
    axes = (
        constant(graph, "axis_0", [0], ir.DataType.INT64)
        if any(n.op_type == "Evict" for n in nodes)
        else None
    )
    for node in nodes:
        if node.op_type == "Evict":
            vector = ir.Value(name=f"{operand(node, CAPACITY).name}.vector")
            graph.insert_before(node, [new_node("Unsqueeze", [node.inputs[CAPACITY], axes], [vector])])
            node.replace_input_with(CAPACITY, vector)
        for attribute in _attributes(node.op_type):
            node.attributes.add(attribute)
        node.op_type = PLUGINS[node.op_type]
    for function in list(model.functions.values()):
        if function.domain == DOMAIN and function.name in PLUGINS:
            calling = _calling(function)
            model.functions[calling.identifier()] = calling
    return len(nodes)


def _attributes(name: str) -> list[ir.Attr]:
    shape_inputs = ir.AttrInt64s("tensorrt_plugin_shape_input_indices", [CAPACITY])
    return [ir.AttrString("plugin_namespace", ""), *([shape_inputs] if name == "Evict" else [])]


def _calling(function: ir.Function) -> ir.Function:
    """A function with the plugin's name, which squeezes the capacity and calls the operator."""
    inputs = [ir.Value(name=value.name) for value in function.inputs]
    nodes, called = [], list(inputs)
    if function.name == "Evict":
        called[CAPACITY] = ir.Value(name="scalar")
        nodes.append(new_node("Squeeze", [inputs[CAPACITY]], [called[CAPACITY]]))
    outputs = [ir.Value(name=value.name) for value in function.outputs]
    passed = [ir.RefAttr(attr.name, attr.name, attr.type) for attr in function.attributes.values()]
    nodes.append(ir.Node(function.domain, function.name, called, passed, outputs=outputs))
    imports = {"": function.opset_imports[""], DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports=imports)
    own = [ir.Attr(attr.name, attr.type, None) for attr in function.attributes.values()]
    name = PLUGINS[function.name]
    return ir.Function(DOMAIN, name, "", graph=graph, attributes=[*own, *_attributes(function.name)])
