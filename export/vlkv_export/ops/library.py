"""The operators as functions for a model to carry."""

import inspect
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnxscript import OnnxFunction

from vlkv_export.ops.canonical import canonical
from vlkv_export.ops.evict import Evict
from vlkv_export.ops.score import Score
from vlkv_export.ops.select import SelectHighest


def functions() -> tuple[ir.Function, ...]:
    """Return Score and Evict, freshly made: a model may own and rewrite them.

    For each: `model.functions[function.identifier()] = function`, and opset imports `{"": 24, "vlkv": 1}`.
    """
    return compiled(Score, ("score", "sparsity")), compiled(Evict, ("new_key", "new_value", "position"))


def function_protos() -> tuple[onnx.FunctionProto, ...]:
    """Return the same as `FunctionProto`s; their bytes are the same every time."""
    return tuple(ir.to_proto(function) for function in functions())


def select_highest() -> ir.Function:
    """Return the selection that stands in for Evict's sort, freshly made."""
    return compiled(SelectHighest, ("chosen",))


def compiled(script: OnnxFunction[..., Any], outputs: Sequence[str]) -> ir.Function:
    """Compile a script: outputs so named, its docstring as documentation."""
    function: ir.Function = ir.serde.deserialize_function(canonical(script.to_function_proto(), outputs))
    function.doc_string = inspect.getdoc(script)
    return function
