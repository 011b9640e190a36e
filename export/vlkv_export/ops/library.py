"""The operators as functions for models to include."""

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
    """Return new copies of Score and Evict, which a model may own and rewrite.

    Add each with `model.functions[function.identifier()] = function`; opset imports are `{"": 24, "vlkv": 1}`.
    """
    return compiled(Score, ("score", "sparsity")), compiled(Evict, ("new_key", "new_value", "position"))


def function_protos() -> tuple[onnx.FunctionProto, ...]:
    """Return the same functions as `FunctionProto`s; their bytes are always the same."""
    return tuple(ir.to_proto(function) for function in functions())


def select_highest() -> ir.Function:
    """Return a new copy of the selection that replaces Evict's sort."""
    return compiled(SelectHighest, ("chosen",))


def compiled(script: OnnxFunction[..., Any], outputs: Sequence[str]) -> ir.Function:
    """Compile a script with the given names of outputs; its docstring becomes the documentation."""
    function: ir.Function = ir.serde.deserialize_function(canonical(script.to_function_proto(), outputs))
    function.doc_string = inspect.getdoc(script)
    return function
