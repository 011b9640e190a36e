"""The token embedding of a foreign decoder: a float table, or the nodes that compute its rows.

The runtime looks up tokens in a float table. If the graph gathers from a matrix, or from the transposed matrix of the
vocabulary (tied embeddings), that is the table. Otherwise, as with 4-bit codes, the nodes are extracted and compute
all rows once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import CheckpointError
from vlkv_export.adopt.forms.spec import refuse

PLACING = {
    *("Cast", "Expand", "Flatten", "GatherND", "Identity", "Reshape", "Shape", "Where"),
    *("ScatterElements", "ScatterND"),
}
"""Operators of embedding graphs that put pictures' features in the place of tokens: they change no embedding."""
LOOKUPS = ("Gather", "GatherBlockQuantized")


@dataclass(frozen=True)
class Lookup:
    """How tokens become rows `[S,hidden]`.

    Fields:
        output: the result of the graph's lookup, which is replaced.
        matrix: the weight that is the table `[V,hidden]`, or with `turned` its transpose; None if there is none.
        turned: whether the matrix is `[hidden,V]`.
        graph: the graph from `input_ids` to the rows, with everything that it needs.
    """

    output: ir.Value
    matrix: ir.Value | None
    turned: bool
    graph: ir.Graph


def find_lookup(graph: ir.Graph) -> Lookup:
    """Finds the node that looks up `input_ids`. Raises `CheckpointError` if there is none, or several."""
    ids = next((value for value in graph.inputs if value.name == "input_ids"), None)
    if ids is None:
        names = [value.name for value in graph.inputs][:4]
        raise CheckpointError(f"the graph has no input 'input_ids' but {names}; expected a decoder of tokens")
    found = [node for node in ids.consumers() if node.op_type in LOOKUPS and node.inputs[1] is ids]
    if len(found) != 1:
        raise CheckpointError(f"{len(found)} nodes look up 'input_ids'; expected one {' or '.join(LOOKUPS)}")
    (node,) = found
    table, turned = node.inputs[0], False
    maker = None if table is None else table.producer()
    if maker is not None and maker.op_type == "Transpose" and node.op_type == "Gather":
        table, turned = maker.inputs[0], True
    plain = node.op_type == "Gather" and table is not None and table.is_initializer()
    return Lookup(
        node.outputs[0], table if plain else None, turned, ir.convenience.extract(graph, [ids], node.outputs)
    )


def find_apart(model: ir.Model) -> Lookup:
    """Finds the table of a graph that maps `input_ids` to embeddings, with pictures' features put in or without.

    What such a graph does with features is the runtime's work. Between the lookup and its output may stand only nodes
    that put features in the place of tokens. Raises `CheckpointError`, which names any other node.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    lookup = find_lookup(model.graph)
    outputs, waiting, seen = set(model.graph.outputs), [lookup.output], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        seen.add(value)
        for node in value.consumers():
            if node.op_type not in PLACING or node.domain != "":
                raise refuse(node, f"reads the embeddings; expected {', '.join(sorted(PLACING))}")
            waiting += [made for made in node.outputs if made not in seen] if node.op_type != "Shape" else []
    if not outputs & seen:
        raise CheckpointError("the embedding graph's output is not what it looks up")
    return lookup


def all_rows(lookup: Lookup, vocab: int) -> ir.TensorProtocol:
    """The rows `[V,hidden]` in float32, as ONNX Runtime computes them."""
    import onnxruntime as ort

    graph = lookup.graph
    for name, value in graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, options)
    rows = session.run(None, {"input_ids": np.arange(vocab)[np.newaxis]})[0][0]
    return ir.Tensor(rows.astype(np.float32))
