"""Makes a float16 or bfloat16 graph compute in float32, for a runtime without 16-bit kernels."""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx_ir as ir

from vlkv_export.passes.edit import tensor_of

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOAT = ir.DataType.FLOAT


def apply(model: ir.Model, *, converted: Mapping[str, ir.TensorProtocol], kept: Container[str] = ()) -> int:
    """Retypes values, casts and weights to float32.

    Applies to: 16-bit values and casts of the main graph, and initializers that are 16-bit or named in `converted`.

    Args:
        model: the graph; changed in place.
        converted: float32 tensors by name, which replace initializers; other 16-bit initializers are widened.
        kept: names of initializers that stay as they are, because their operator reads that dtype.

    Returns:
        The number of initializers replaced.
    """
    graph = model.graph
    count = 0
    for name, value in graph.initializers.items():
        if name in kept or (value.dtype not in HALF and name not in converted):
            continue
        value.const_value = converted[name] if name in converted else _widened(tensor_of(value))
        value.type = ir.TensorType(FLOAT)
        count += 1
    for node in graph:
        if node.op_type == "Cast" and node.attributes.get_int("to") in HALF:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT)
        for value in node.outputs:
            if value.dtype in HALF:
                value.type = ir.TensorType(FLOAT)
    for value in graph.inputs:
        if value.dtype in HALF:
            value.type = ir.TensorType(FLOAT)
    return count


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype("float32"), name=tensor.name)
