"""Writes the weights of an adopted graph into one safetensors file.

Float matrices are written as `[outputs, inputs]` and multiplied by their transpose, as in vlkv's own graphs, so that
`vlkv build --weights` applies to them. Other weights, such as 4-bit codes, are copied byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv_export.adopt.decoder import Adopted
from vlkv_export.adopt.embedding import Lookup, all_rows
from vlkv_export.adopt.facts import Source
from vlkv_export.passes.edit import new_node
from vlkv_export.weights.convert import NAMES, TABLE
from vlkv_export.weights.files import SAFETENSORS
from vlkv_export.weights.header import Place, lay_out

FILE = "weights.safetensors"
SMALL = 1024
"""Weights of at most this many bytes stay in the graph's file."""
CODES = {
    **{dtype: SAFETENSORS[name] for dtype, name in NAMES.items()},
    ir.DataType.DOUBLE: "F64",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
}
"""The names of dtypes in safetensors; other dtypes are written as bytes."""


def turn_matrices(model: ir.Model) -> int:
    """Replaces `MatMul(x, w)` by `MatMul(x, Transpose(w'))`, where `w` is a float matrix that only products read.

    The weights are transposed lazily; `write` requests one at a time. Returns the number of matrices.
    """
    count = 0
    for name, weight in model.graph.initializers.items():
        tensor, users = weight.const_value, list(weight.consumers())
        if tensor is None or tensor.dtype not in NAMES or len(tensor.shape) != 2 or not users:
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
        The table's offset in the file, and its dtype.
    """
    graph = adopted.model.graph
    table = _table(adopted.lookup, source)
    tensors = ({} if isinstance(table, str) else {TABLE: table}) | _large(graph)
    places = _save(graph, tensors, folder / FILE, advance)
    name = table if isinstance(table, str) else TABLE
    return places[name].offset, tensors[name].dtype


def write_graph(graph: ir.Graph, path: Path) -> None:
    """Writes a graph's large weights into a file; the graph then refers to it."""
    _save(graph, _large(graph), path)


def _large(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """The large weights by name; small ones of other files are taken into the graph."""
    tensors = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > SMALL and tensor.dtype != ir.DataType.STRING:
            tensors[name] = tensor
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    return tensors


def _save(
    graph: ir.Graph,
    tensors: Mapping[str, ir.TensorProtocol],
    path: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Place]:
    header, places = lay_out((name, *_described(tensor), tensor.nbytes) for name, tensor in tensors.items())
    with path.open("wb") as out:
        out.write(header)
        for tensor in tensors.values():
            out.write(tensor.tobytes())
            advance(tensor.nbytes)
    for name, tensor in tensors.items():
        if name != TABLE:
            place = (path.name, places[name].offset, places[name].length)
            graph.initializers[name].const_value = ir.ExternalTensor(
                *place, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    return places


def _described(tensor: ir.TensorProtocol) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape for the header; a dtype that safetensors does not know is told as bytes."""
    known = CODES.get(tensor.dtype)
    return ("U8", (tensor.nbytes,)) if known is None else (known, tuple(tensor.shape.numpy()))


def _table(lookup: Lookup, source: Source) -> ir.TensorProtocol | str:
    """The float table `[V,hidden]` of token embeddings, or the name of the transposed matrix that is the table."""
    if lookup.matrix is None:
        return all_rows(lookup, source.vocab)
    matrix, tensor = lookup.matrix, lookup.matrix.const_value
    shape = None if tensor is None else tuple(tensor.shape.numpy())
    # a matrix that only products read is already transposed
    tied = lookup.turned and isinstance(tensor, ir.LazyTensor)
    if tensor is None or tensor.dtype not in NAMES or shape != (source.vocab, source.hidden):
        if lookup.turned and shape == (source.hidden, source.vocab):
            return all_rows(lookup, source.vocab)
        raise CheckpointError(
            f"{source.graph}: the token embedding is {list(shape or ())}; "
            f"the configuration says [{source.vocab}, {source.hidden}] of floats"
        )
    return str(matrix.name) if tied else tensor
