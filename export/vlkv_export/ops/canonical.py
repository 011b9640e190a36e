"""Makes the output of onnxscript's compiler identical in every process.

onnxscript orders the outputs of If and the carried values of Loop by iterating over a set of names, so the order
depends on the process's hash seed. Here they are ordered by name, and the numbers in unique names are reassigned.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper

# The condition of every Loop: TensorRT for RTX and ONNX's own evaluator do not accept a missing condition.
ALWAYS = "always"


def canonical(function: FunctionProto, outputs: Sequence[str]) -> FunctionProto:
    """Make a copy in canonical order and naming, with the given names of outputs.

    Supports only Loops without scan outputs, as onnxscript makes them from `for`.
    """
    made = FunctionProto()
    made.CopyFrom(function)
    names = _Names(made.input, dict(zip(made.output, outputs, strict=True)))
    _order_nodes(made.node, names)
    made.output[:] = outputs
    if names.loops:
        true = helper.make_tensor("", TensorProto.BOOL, [], [True])
        made.node.insert(0, helper.make_node("Constant", [], [ALWAYS], value=true))
    return made


class _Names:
    """Maps old names to new ones, unique over the function and its subgraphs."""

    def __init__(self, inputs: Sequence[str], outputs: dict[str, str]) -> None:
        self.new = {name: name for name in inputs}
        self.loops = False
        self._outputs = outputs
        self._taken = {"", ALWAYS, *inputs, *outputs.values()}

    def define(self, old: str) -> str:
        if old in self._outputs:
            self.new[old] = self._outputs[old]
            return self.new[old]
        base = _base(old)
        numbered = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        self.new[old] = next(name for name in numbered if name not in self._taken)
        self._taken.add(self.new[old])
        return self.new[old]


def _order_nodes(nodes: Sequence[NodeProto], names: _Names) -> None:
    for node in nodes:
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        if bodies:
            _order_outputs(node, bodies)
        node.input[:] = [names.new[name] if name else "" for name in node.input]
        if node.op_type == "Loop":
            node.input[1] = ALWAYS
            names.loops = True
        for body in bodies:
            body.name = _base(body.name)
            for value in body.input:
                value.name = names.define(value.name)
            _order_nodes(body.node, names)
            for value in body.output:
                value.name = names.new[value.name]
        node.output[:] = [names.define(name) for name in node.output]
        node.ClearField("name")


def _order_outputs(node: NodeProto, bodies: Sequence[GraphProto]) -> None:
    order = sorted(range(len(node.output)), key=lambda index: _base(node.output[index]))
    loop = node.op_type == "Loop"
    _permute(node.output, order, 0)
    if loop:
        _permute(node.input, order, 2)
    for body in bodies:
        _permute(body.output, order, 1 if loop else 0)
        if loop:
            _permute(body.input, order, 2)


def _permute(values: Any, order: Sequence[int], start: int) -> None:
    """Put `values[start:]` in that order. Messages of a repeated field are copied, as they can't be assigned."""
    before = list(values)
    copies = [
        item if isinstance(item, str) else type(item).FromString(item.SerializeToString()) for item in before
    ]
    del values[start:]
    values.extend(copies[start + index] for index in order)


def _base(name: str) -> str:
    return re.sub(r"_\d+$", "", name)
