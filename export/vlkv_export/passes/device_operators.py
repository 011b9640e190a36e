"""Replaces VlkvAttend, Score and Evict nodes by vlkv's operators of ONNX Runtime's CUDA provider.

Each has an operator per dtype, named `DeviceAttendFloat16` and so on, in the domain `vlkv.native`, and one output more:
its workspace, which ONNX Runtime allocates in the order of its stream. Nothing reads it.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv.errors import EngineError
from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import NATIVE, dtype_of, like, operand, remove_unused_functions, replace

OPERATORS = {"VlkvAttend": "DeviceAttend", "Score": "DeviceScore", "Evict": "DeviceEvict"}
DTYPES = {ir.DataType.FLOAT16: "Float16", ir.DataType.BFLOAT16: "BFloat16"}


def apply(model: ir.Model) -> int:
    """Renames each node and adds its workspace.

    Applies to: every VlkvAttend, Score and Evict node of the main graph; all have float16 or bfloat16 inputs.
    Requires: `half`, and for VlkvAttend `attend_in_place`, ran before.

    Returns:
        The number of nodes replaced.

    Raises:
        EngineError: a node's dtype is another one.
    """
    graph = model.graph
    found = [node for node in graph if node.domain == DOMAIN and node.op_type in OPERATORS]
    for node in found:
        dtype = dtype_of(operand(node, 0))
        if dtype not in DTYPES:
            raise EngineError(
                f"{node.op_type} {node.name!r} has {dtype.name} inputs, not FLOAT16 or BFLOAT16"
            )
        name = OPERATORS[node.op_type] + DTYPES[dtype]
        attributes = [a for a in node.attributes.values() if a.name != "plugin_namespace"]
        outputs = list(node.outputs)
        workspace = ir.Value(name=f"{outputs[0].name}.workspace", type=ir.TensorType(ir.DataType.UINT8))
        results = [like(value) for value in outputs]
        made = ir.Node(NATIVE, name, node.inputs, attributes, outputs=[*results, workspace], name=node.name)
        replace(graph, node, [made], dict(zip(outputs, results, strict=True)))
        graph.remove(node, safe=True)
    if found:
        graph.opset_imports[NATIVE] = 1
        remove_unused_functions(model)
    return len(found)
