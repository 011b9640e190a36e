"""Matrices in codes, `(code - zero) * scale`, taken out of a graph: as codes for `Linear`, or widened to float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from vlkv_export.passes.edit import add_initializer, producer
from vlkv_export.passes.products import Stored
from vlkv_export.weights.header import lay_out

FLOAT = ir.DataType.FLOAT
ROWS = 1 << 22
"""Codes that are widened at a time."""


@dataclass(frozen=True, eq=False)
class CodedMatrix:
    """A matrix `[N, K]` of a graph, G blocks a row.

    Fields:
        name: its own, without that of a part.
        value: its floats in the graph.
        codes: `[N, K]` uint4 or uint8.
        scales: `[N, G]` float16 or float32.
        zeros: `[N, G]` uint8, or None where all are 128.
    """

    name: str
    value: ir.Value
    codes: ir.ExternalTensor
    scales: ir.ExternalTensor
    zeros: ir.ExternalTensor | None

    def stored(self) -> Stored:
        """The parts as `Linear` takes them: codes `[N, G, block / 2]` or `[N, G, block]`, scales, and zeros."""
        (rows, columns), groups = self.codes.shape.numpy(), self.scales.shape.numpy()[1]
        bits = 4 if self.codes.dtype == ir.DataType.UINT4 else 8
        place = (str(self.codes.location), self.codes.offset, self.codes.length)
        shape = ir.Shape((rows, groups, columns // groups * bits // 8))
        codes = ir.ExternalTensor(*place, ir.DataType.UINT8, shape=shape, name=f"{self.name}.codes")
        return Stored((codes, self.scales, *([] if self.zeros is None else [self.zeros])), bits)


def find_coded(model: ir.Model) -> list[CodedMatrix]:
    """The matrices in codes that the graph multiplies out."""
    return [found for node in model.graph if (found := _match(node)) is not None]


def take_codes(models: dict[str, ir.Model]) -> dict[str, Stored]:
    """Replaces each coded matrix by a float initializer for the pass `native_linear`; returns the codes by name."""
    found: dict[str, Stored] = {}
    for model in models.values():
        for matrix in find_coded(model):
            found[matrix.name] = matrix.stored()
            shape = ir.Shape(matrix.codes.shape.numpy())
            empty = ir.Value(name=matrix.name, type=ir.TensorType(FLOAT), shape=shape)
            model.graph.register_initializer(_with_content(empty, matrix))
            _put(model, matrix, empty)
    return found


def _with_content(value: ir.Value, matrix: CodedMatrix) -> ir.Value:
    """An initializer needs content; that of the codes stands in until `native_linear` takes the value out."""
    value.const_value = matrix.codes
    value.type = ir.TensorType(FLOAT)
    return value


def widen_codes(source: Path, target: Path, models: dict[str, ir.Model]) -> int:
    """Writes every matrix in codes into a safetensors file of float32, which the graphs read from then on.

    Args:
        source: the folder that the codes are in.
        target: the file to write.
        models: the graphs by name.

    Returns:
        How many matrices; no file is written for none.
    """
    matrices = {m.name: (model, m) for model in models.values() for m in find_coded(model)}
    if not matrices:
        return 0
    shapes = {name: matrix.codes.shape.numpy() for name, (_, matrix) in matrices.items()}
    header, places = lay_out((name, "F32", shape, 4 * prod(shape)) for name, shape in shapes.items())
    with target.open("wb") as out:
        out.write(header)
        for _, matrix in matrices.values():
            for rows in _widened(source, matrix):
                out.write(rows.data)
    for name, (model, matrix) in matrices.items():
        place = (target.name, places[name].offset, places[name].length)
        shape = ir.Shape(shapes[name])
        _put(
            model,
            matrix,
            add_initializer(model.graph, ir.ExternalTensor(*place, FLOAT, shape=shape, name=name)),
        )
    return len(matrices)


def _widened(source: Path, matrix: CodedMatrix) -> Iterator[NDArray[np.float32]]:
    """A matrix in float32, some rows at a time."""
    rows, columns = (int(n) for n in matrix.codes.shape.numpy())
    groups = int(matrix.scales.shape.numpy()[1])
    small = matrix.codes.dtype == ir.DataType.UINT4
    codes = _map(source, matrix.codes, np.uint8, (rows, columns // 2 if small else columns))
    half = matrix.scales.dtype == ir.DataType.FLOAT16
    scales = _map(source, matrix.scales, np.float16 if half else np.float32, (rows, groups))
    zeros = None if matrix.zeros is None else _map(source, matrix.zeros, np.uint8, (rows, groups))
    step = max(1, ROWS // columns)
    for first in range(0, rows, step):
        part = np.asarray(codes[first : first + step])
        if small:
            part = np.stack([part & 15, part >> 4], axis=-1)
        wide = part.reshape(len(part), groups, -1).astype(np.float32)
        wide -= 128 if zeros is None else zeros[first : first + step, :, np.newaxis].astype(np.float32)
        wide *= scales[first : first + step, :, np.newaxis].astype(np.float32)
        yield np.ascontiguousarray(wide.reshape(len(part), columns))


def _map(source: Path, tensor: ir.ExternalTensor, dtype: type, shape: tuple[int, ...]) -> NDArray[np.generic]:
    return np.memmap(source / str(tensor.location), dtype, "r", tensor.offset or 0, shape)


def _match(node: ir.Node) -> CodedMatrix | None:
    """`Reshape(Mul(Sub(Reshape(Cast(codes)), zeros), Unsqueeze(scales)))`, as `Builder` makes it."""
    product = producer(node.inputs[0], "Mul") if node.op_type == "Reshape" else None
    difference = producer(product.inputs[0], "Sub") if product else None
    scaled = producer(product.inputs[1], "Unsqueeze") if product else None
    blocks = producer(difference.inputs[0], "Reshape") if difference else None
    if difference is None or scaled is None or blocks is None:
        return None
    codes, scales = _content(blocks.inputs[0]), _content(scaled.inputs[0])
    if codes is None or scales is None or codes.dtype not in (ir.DataType.UINT4, ir.DataType.UINT8):
        return None
    moved = producer(difference.inputs[1], "Unsqueeze")
    zeros = _content(moved.inputs[0]) if moved else None
    return CodedMatrix(str(codes.name).removesuffix(".codes"), node.outputs[0], codes, scales, zeros)


def _content(value: ir.Value | None) -> ir.ExternalTensor | None:
    cast = producer(value, "Cast")
    source = cast.inputs[0] if cast is not None else value
    tensor = source.const_value if source is not None else None
    return tensor if isinstance(tensor, ir.ExternalTensor) else None


def _put(model: ir.Model, matrix: CodedMatrix, value: ir.Value) -> None:
    """Lets the users of a matrix's floats use `value`, without the cast to the graph's dtype between."""
    ir.convenience.replace_all_uses_with(matrix.value, value)
    for user in list(value.consumers()):
        if user.op_type == "Cast" and user.domain == "":
            ir.convenience.replace_all_uses_with(user.outputs[0], value)
    common.RemoveUnusedNodesPass()(model)
