"""Builds a graph: named inputs and outputs, and weights that refer to the checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from vlkv_export.checkpoint import Tensor
from vlkv_export.checkpoint.facts import Placed, Stored
from vlkv_export.ops import DOMAIN, OPSET, VERSION, functions

IR_VERSION = 11
CODE_SCALES = {"F16": ir.DataType.FLOAT16, "F32": ir.DataType.FLOAT}
DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


class Builder:
    """Builds one graph. `op` makes standard nodes, `vlkv` makes vlkv's; both accept Python numbers as constants.

    Args:
        name: the graph's name.
        tensors: the checkpoint's tensors by canonical name.
        dtype: the dtype of the graph's arithmetic; weights of other dtypes are cast.
        coded: matrices that the graph directory holds as codes, by canonical name.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        dtype: str,
        coded: Mapping[str, Placed] = MappingProxyType({}),
    ) -> None:
        opsets = {"": OPSET, DOMAIN: VERSION}
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports=opsets)
        self.dtype = DTYPES[dtype]
        self._builder = GraphBuilder(self.graph)
        self._tensors = tensors
        self._coded = coded
        self._orders: dict[tuple[ir.Value, bytes], ir.Value] = {}
        self._weights: dict[str, ir.Value] = {}
        self.op = self._builder.op
        self.vlkv = self._builder.opset(DOMAIN, VERSION)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes made inside with `name`, which viewers show as a folder."""
        self._builder.push_module(name)
        try:
            yield
        finally:
            self._builder.pop_module()

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        """Add a graph input; letters in `shape` are dynamic dimensions."""
        return self._builder.input(name, dtype, shape)

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
        """Make `value` a graph output of that name, dtype and shape."""
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self.graph.outputs.append(value)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that canonical name."""
        return name in self._tensors

    def weight(self, name: str) -> ir.Value:
        """The tensor of that canonical name in the graph's dtype; it refers to the checkpoint's file."""
        if name not in self._weights and name in self._coded:
            value = self._widened(name, self._coded[name])
            self._weights[name] = (
                value if self.dtype == DTYPES["float32"] else self.op.Cast(value, to=self.dtype)
            )
        if name not in self._weights:
            tensor = self._tensors[name]
            external = ir.ExternalTensor(
                tensor.file,
                tensor.offset,
                tensor.length,
                DTYPES[tensor.dtype],
                shape=ir.Shape(tensor.shape),
                name=name,
            )
            value = self._builder.initializer(external, name, qualify=False)
            self._weights[name] = value if value.dtype == self.dtype else self.op.Cast(value, to=self.dtype)
        return self._weights[name]

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """`x @ weight.T + bias`; weights are stored as `[out, in]`, and a bias is added if the checkpoint has one."""
        placed = self._coded.get(f"{name}.weight")
        if placed is not None and placed.order is not None:
            x = self._ordered(x, placed.order)
        weight = self.op.Transpose(self.weight(f"{name}.weight"), perm=[1, 0])
        y = self.op.MatMul(x, weight)
        return self.op.Add(y, self.weight(f"{name}.bias")) if self.has(f"{name}.bias") else y

    def _ordered(self, x: ir.Value, order: np.ndarray) -> ir.Value:
        """`x` with its last axis in the order of a matrix's columns, made once for matrices that share it."""
        key = (x, order.tobytes())
        if key not in self._orders:
            self._orders[key] = self.op.Gather(x, self.op.Constant(value=ir.tensor(order)), axis=-1)
        return self._orders[key]

    def _widened(self, name: str, placed: Placed) -> ir.Value:
        """A matrix in codes as `(code - zero) * scale`, float32 `[N, K]`; see `vlkv_export.weights.coded`."""
        outputs, inputs = placed.shape
        groups = placed.scales.shape[1]

        def part(kind: str, stored: Stored, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
            place = (stored.file, stored.offset, stored.length)
            tensor = ir.ExternalTensor(*place, dtype, shape=ir.Shape(shape), name=f"{name}.{kind}")
            value = self._builder.initializer(tensor, f"{name}.{kind}", qualify=False)
            return value if dtype == DTYPES["float32"] else self.op.Cast(value, to=DTYPES["float32"])

        code = ir.DataType.UINT4 if placed.bits == 4 else ir.DataType.UINT8
        codes = part("codes", placed.codes, code, placed.shape)
        scales = part("scales", placed.scales, CODE_SCALES[placed.scales.dtype], (outputs, groups))
        zeros: ir.Value | float = 128.0
        if placed.zeros is not None:
            found = part("zeros", placed.zeros, ir.DataType.UINT8, (outputs, groups))
            zeros = self.op.Unsqueeze(found, [-1])
        blocks = self.op.Reshape(codes, [outputs, groups, inputs // groups])
        wide = self.op.Mul(self.op.Sub(blocks, zeros), self.op.Unsqueeze(scales, [-1]))
        return self.op.Reshape(wide, [outputs, inputs])

    def model(self) -> ir.Model:
        """The finished model, with the functions of the vlkv operators that it uses."""
        used = {node.op_type for node in self.graph if node.domain == DOMAIN}
        carried = [function for function in functions() if function.name in used]
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="vlkv", functions=carried)
