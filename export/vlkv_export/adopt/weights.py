"""The weights of an adopted graph, written once into one safetensors file.

Matrices of floats are written as `[outputs, inputs]` and multiplied by their transpose, as vlkv's own graphs have them,
so that `vlkv build --weights` applies to them. Everything else, 4-bit codes for instance, is copied byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv_export.adopt.decoder import Adopted
from vlkv_export.adopt.facts import Source
from vlkv_export.passes.edit import new_node

FILE = "weights.safetensors"
TABLE = "text.embed_tokens.weight"
SMALL = 1024
"""Weights of at most so many bytes stay in the graph's file."""
ALIGNMENT = 64
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
NAMES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.DOUBLE: "F64",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
}
"""How safetensors calls a dtype; others are written as bytes."""


def turn_matrices(model: ir.Model) -> int:
    """Puts `MatMul(x, Transpose(w))` in the place of `MatMul(x, w)`, `w` a matrix of floats that only products read.

    The values of the weights turn here; `write` asks for one at a time. Returns how many matrices turned.
    """
    count = 0
    for name, weight in model.graph.initializers.items():
        tensor, users = weight.const_value, list(weight.consumers())
        if tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) != 2 or not users:
            continue
        if any(node.op_type != "MatMul" or list(node.inputs).index(weight) != 1 for node in users):
            continue
        turned = ir.LazyTensor(
            lambda tensor=tensor, name=name: ir.Tensor(  # type: ignore[misc]
                np.ascontiguousarray(tensor.numpy().T), dtype=tensor.dtype, name=name
            ),
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()[::-1]),
            name=name,
        )
        weight.const_value, weight.shape = turned, turned.shape
        for number, node in enumerate(users):
            back = ir.Value(name=f"{name}.transposed.{number}", type=weight.type)
            model.graph.insert_before(
                node,
                new_node("Transpose", [weight], [back], {"perm": [1, 0]}, name=f"{name}/Transpose.{number}"),
            )
            node.replace_input_with(1, back)
        count += 1
    return count


def write(
    adopted: Adopted, source: Source, folder: Path, advance: Callable[[int], None] = lambda count: None
) -> tuple[int, ir.DataType]:
    """Writes the graph's large weights and the embedding table; the graph then refers to the file.

    Returns:
        Where the table begins in the file, and its dtype.
    """
    graph = adopted.model.graph
    tensors = {TABLE: _table(adopted.lookup, source)}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > SMALL and tensor.dtype != ir.DataType.STRING:
            tensors[name] = tensor
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    header, offset = {}, 0
    for name, tensor in tensors.items():
        known = NAMES.get(tensor.dtype)
        shape = list(tensor.shape.numpy()) if known else [tensor.nbytes]
        header[name] = {
            "dtype": known or "U8",
            "shape": shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    start = 8 + len(text)
    with (folder / FILE).open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            out.write(tensor.tobytes())
            advance(tensor.nbytes)
    at = start
    for name, tensor in tensors.items():
        if name != TABLE:
            graph.initializers[name].const_value = ir.ExternalTensor(
                FILE, at, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        at += tensor.nbytes
    return start, tensors[TABLE].dtype


def _table(lookup: ir.Node, source: Source) -> ir.TensorProtocol:
    """The table `[V,hidden]` of token embeddings, in floats."""
    tensor = None if lookup.inputs[0] is None else lookup.inputs[0].const_value
    if tensor is None:
        raise CheckpointError(f"{source.graph}: the token embedding's table is not a weight of the graph")
    if lookup.op_type != "Gather":
        return _dequantised(lookup, source)
    if tuple(tensor.shape.numpy()) != (source.vocab, source.hidden) or tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{source.graph}: the token embedding is {tensor.dtype} {list(tensor.shape.numpy())}; "
            f"the configuration says [{source.vocab}, {source.hidden}] of floats"
        )
    return tensor


def _dequantised(lookup: ir.Node, source: Source) -> ir.TensorProtocol:
    """The rows that a `GatherBlockQuantized` gives, as ONNX Runtime computes them."""
    import onnxruntime as ort

    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["N"]))
    inputs: list[ir.Value | None] = []
    weights: list[ir.Value] = []
    for place, value in enumerate(lookup.inputs):
        if place == 1:
            inputs.append(ids)
        elif value is None:
            inputs.append(None)
        else:
            inner = ir.Value(
                name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
            )
            inputs.append(inner)
            weights.append(inner)
    node = ir.Node(lookup.domain, lookup.op_type, inputs, lookup.attributes.values(), num_outputs=1)
    node.outputs[0].name = "rows"
    graph = ir.Graph(
        [ids],
        node.outputs,
        nodes=[node],
        initializers=weights,
        name="table",
        opset_imports={"": 21, lookup.domain: 1},
    )
    session = ort.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    rows = session.run(None, {"ids": np.arange(source.vocab)})[0]
    return ir.Tensor(rows.astype(np.float32), name=TABLE)
