"""Finds the weights that an engine's dtype requires to be rewritten, and the files that its graphs read."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from vlkv.storage.manifest import BYTES, Embedding, Manifest
from vlkv_export.checkpoint import Tensor
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.checkpoint.layout import EMBEDDING

NAMES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
TABLE = EMBEDDING


def other_weights(models: dict[str, ir.Model], dtype: str) -> dict[str, Tensor]:
    """The graphs' weights that are stored in another dtype, by name."""
    return {name: tensor for name, tensor in all_weights(models).items() if tensor.dtype != dtype}


def all_weights(models: dict[str, ir.Model]) -> dict[str, Tensor]:
    """The graphs' float weights that are stored in a file, by name."""
    return stored(value for model in models.values() for value in model.graph.initializers.values())


def stored(values: Iterable[ir.Value]) -> dict[str, Tensor]:
    """The float initializers that are stored in a file, by name."""
    found: dict[str, Tensor] = {}
    for value in values:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.dtype in NAMES:
            name, shape = str(value.name), tuple(tensor.shape.numpy())
            offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
            found[name] = Tensor(name, str(tensor.location), NAMES[tensor.dtype], shape, offset, length)
    return found


def embedding_table(manifest: Manifest) -> Tensor:
    """The location of the token embedding table."""
    table = manifest.embedding
    size = table.shape[0] * table.shape[1] * BYTES[table.dtype]
    return Tensor(TABLE, table.file, table.dtype, table.shape, table.offset, size)


def embedding(placed: Tensor, scale: float) -> Embedding:
    """The manifest's record of a table that was rewritten."""
    vocab, hidden = placed.shape
    shape = (vocab, hidden)
    return Embedding(file=placed.file, offset=placed.offset, dtype=placed.dtype, shape=shape, scale=scale)


def external(tensor: Tensor) -> ir.ExternalTensor:
    """An initializer's value that refers to the tensor in its file."""
    shape = ir.Shape(tensor.shape)
    place = (tensor.file, tensor.offset, tensor.length)
    return ir.ExternalTensor(*place, DTYPES[tensor.dtype], shape=shape, name=tensor.name)


def weight_files(models: dict[str, ir.Model]) -> set[str]:
    """The files of the graphs' weights."""
    tensors = (value.const_value for model in models.values() for value in model.graph.initializers.values())
    return {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
