"""Nodes that TensorRT's parser takes for the plugin's layers; any other runtime takes them for functions.

The parser finds a plugin by op_type, `plugin_version` (left out: "1") and `plugin_namespace`, whose presence puts the
plugin before a function. It takes a shape input of one dimension only, where Evict has a scalar capacity.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import constant, new_node, operand

CAPACITY = 7
"""The number of Evict's input `capacity`."""
PLUGINS = {"Score": "VlkvScore", "Evict": "VlkvEvict"}


def name_plugins(model: ir.Model) -> int:
    """Renames each Score and Evict node after its plugin, and adds functions of those names that call the old."""
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
    """A function of the plugin's name: `Squeeze` before the capacity, then the operator."""
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
