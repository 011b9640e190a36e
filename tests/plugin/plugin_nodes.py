"""Graphs whose Score and Evict nodes TensorRT's parser takes as the plugin's, and ONNX Runtime as functions."""

import onnx
from onnx import AttributeProto, helper

DOMAIN = "vlkv"
CAPACITY = 7  # of Evict's inputs
NAMES = ("Score", "Evict")


def plugin_nodes(model: onnx.ModelProto) -> int:
    """Rename each `vlkv` node of the graph after its plugin; return how many there were.

    The parser finds a plugin by op_type, plugin_version (left out: "1") and plugin_namespace, whose presence
    puts the plugin before a function. It takes a shape input of one dimension only, where Evict has a scalar
    capacity. Other runtimes inline functions of the new names, which call the old ones.
    """
    graph, nodes = model.graph, []
    for index, node in enumerate(graph.node):
        if node.domain == DOMAIN and node.op_type in NAMES:
            if node.op_type == "Evict":
                scalar = node.input[CAPACITY]
                axes, capacity = f"{scalar}.axes{index}", f"{scalar}.vector{index}"
                graph.initializer.append(helper.make_tensor(axes, onnx.TensorProto.INT64, [1], [0]))
                nodes.append(helper.make_node("Unsqueeze", [scalar, axes], [capacity]))
                node.input[CAPACITY] = capacity
            node.attribute.extend(_attributes(node.op_type))
            node.op_type = f"Vlkv{node.op_type}"
        nodes.append(node)
    count = sum(node.op_type.startswith("Vlkv") for node in nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    model.functions.extend([_calling(f) for f in model.functions if f.domain == DOMAIN and f.name in NAMES])
    return count


def _attributes(name: str) -> list[AttributeProto]:
    shape_inputs = [helper.make_attribute("tensorrt_plugin_shape_input_indices", [CAPACITY])]
    return [helper.make_attribute("plugin_namespace", ""), *(shape_inputs if name == "Evict" else [])]


def _calling(function: onnx.FunctionProto) -> onnx.FunctionProto:
    inputs, nodes = list(function.input), []
    if function.name == "Evict":
        nodes.append(helper.make_node("Squeeze", [inputs[CAPACITY]], ["scalar"]))
    called = [*inputs[:CAPACITY], *(["scalar"] if nodes else inputs[CAPACITY:])]
    call = helper.make_node(function.name, called, list(function.output), domain=DOMAIN)
    kind = AttributeProto.FLOAT if function.name == "Score" else AttributeProto.INT
    for attribute in function.attribute:
        call.attribute.append(AttributeProto(name=attribute, ref_attr_name=attribute, type=kind))
    return helper.make_function(
        DOMAIN,
        f"Vlkv{function.name}",
        inputs,
        list(function.output),
        [*nodes, call],
        [*function.opset_import, helper.make_opsetid(DOMAIN, 1)],
        list(function.attribute),
        _attributes(function.name),
    )
