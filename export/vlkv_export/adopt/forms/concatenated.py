"""Attention over caches joined by Concat: Optimum's graphs (MatMul, Softmax, MatMul), genai's MultiHeadAttention.

Applies to: present = Concat(past, new) along the tokens; between the caches and the attention there are only repetition
of heads, transposition and a constant factor; scores are changed only by constant factors, a mask and a softmax. The
mask is not interpreted: `check` compares the result with the original graph instead. A bias that depends on weights
(ALiBi, T5's) is refused by name.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from vlkv_export.adopt.forms.spec import Attention, Caches, refuse
from vlkv_export.passes.edit import MICROSOFT

REPEAT = {"Unsqueeze", "Expand", "Reshape", "Transpose", "Identity", "Cast"}
"""Operators between a cache and the product that reads it; `check` verifies their effect on shapes."""


def match(caches: Caches) -> Attention | None:
    """Matches the Concats that produce the present caches, and the nodes that use them; see `Form`."""
    joined = [present.producer() for present in caches.present]
    keys, values = joined
    if keys is None or values is None or any(node.op_type != "Concat" for node in (keys, values)):
        return None
    new = []
    for node, past in zip((keys, values), caches.past, strict=True):
        if (
            len(node.inputs) != 2
            or node.inputs[0] is not past
            or node.attributes.get_int("axis") not in (2, -2)
        ):
            raise refuse(node, "not Concat(past, new) along the tokens of caches [B,heads,tokens,D]")
        new.append(node.inputs[1])
    key_use, key_factor = _read(keys.outputs[0])
    value_use, value_factor = _read(values.outputs[0])
    if value_factor != 1.0:
        raise refuse(value_use, f"values are multiplied by {value_factor}")
    if key_use is value_use and key_use.op_type == "MultiHeadAttention":
        return _multi_head(caches, key_use, new, key_factor)
    if key_use.op_type != "MatMul" or value_use.op_type != "MatMul":
        raise refuse(key_use, "reads the keys; expected MatMul or MultiHeadAttention")
    return _products(caches, key_use, value_use, new, key_factor)


def _read(value: ir.Value) -> tuple[ir.Node, float]:
    """The node that multiplies a cache, and the product of the constant factors before it."""
    factor = 1.0
    while True:
        users = [node for node in dict.fromkeys(value.consumers()) if node.op_type != "Shape"]
        if len(users) != 1:
            raise refuse(
                users[0] if users else _made(value), f"{value.name!r} has {len(users)} users, expected one"
            )
        (node,) = users
        if node.op_type in REPEAT and node.domain == "":
            value = node.outputs[0]
        elif (found := _factor(node, value)) is not None:
            factor, value = factor * found, node.outputs[0]
        else:
            return node, factor


def _multi_head(caches: Caches, node: ir.Node, new: list[ir.Value | None], factor: float) -> Attention:
    given = [
        index for index, value in enumerate(node.inputs) if value is not None and index not in (0, 1, 2, 5)
    ]
    if node.domain != MICROSOFT or given:
        raise refuse(node, f"inputs {given} can't be taken over; expected query, key, value and a mask")
    if node.attributes.get_int("num_heads") != caches.query_heads:
        raise refuse(node, f"num_heads is not the configuration's {caches.query_heads}")
    _check_mask(node, node.inputs[5] if len(node.inputs) > 5 else None)
    query, (key, value) = node.inputs[0], new
    if query is None or key is None or value is None:
        raise refuse(node, "no query")
    scale = node.attributes.get_float("scale", 0.0) or caches.head_dim**-0.5
    return Attention(caches, query, key, value, scale * factor, node.outputs[0], key_split=True)


def _products(
    caches: Caches, scores: ir.Node, result: ir.Node, new: list[ir.Value | None], factor: float
) -> Attention:
    query, (key, value) = scores.inputs[0], new
    if query is None or key is None or value is None:
        raise refuse(scores, "no query")
    made, softmax = scores.outputs[0], False
    while True:
        users = list(dict.fromkeys(made.consumers()))
        if {user.op_type for user in users} == {"IsNaN", "Where"}:
            users = [user for user in users if user.op_type == "Where"]
        if len(users) != 1:
            raise refuse(scores, f"{made.name!r} has {len(users)} users, expected one")
        (node,) = users
        if node is result:
            break
        if node.op_type == "Softmax" and node.attributes.get_int("axis", -1) in (-1, 3):
            softmax = True
        elif not softmax and node.op_type in ("Add", "Where"):
            for other in node.inputs:
                if other is not made:
                    _check_mask(node, other)
        elif not softmax and (found := _factor(node, made)) is not None:
            factor *= found
        elif not (node.op_type in ("Cast", "Identity") or (softmax and node.op_type == "Where")):
            raise refuse(node, "between scores and their use; expected factors, a mask and a softmax")
        made = node.outputs[0]
    if not softmax:
        raise refuse(result, "values are multiplied by scores without a softmax")
    flat = _flattened(result.outputs[0])
    return Attention(
        caches,
        query,
        key,
        value,
        factor,
        flat or result.outputs[0],
        result_split=flat is None,
        query_split=True,
        key_split=True,
    )


def _flattened(value: ir.Value) -> ir.Value | None:
    """Matches `Reshape(Transpose(x, [0,2,1,3]))`, the result with joined heads; None if `value` is used otherwise."""
    users = list(value.consumers())
    if len(users) != 1 or users[0].op_type != "Transpose":
        return None
    turned = users[0].outputs[0]
    last = list(turned.consumers())
    if list(users[0].attributes.get_ints("perm")) != [0, 2, 1, 3] or len(last) != 1:
        return None
    return last[0].outputs[0] if last[0].op_type == "Reshape" else None


def _factor(node: ir.Node, value: ir.Value) -> float | None:
    """The number that a Mul or Div multiplies `value` by; None for other nodes."""
    if node.op_type not in ("Mul", "Div") or node.domain != "" or len(node.inputs) != 2:
        return None
    place = list(node.inputs).index(value)
    number = _number(node.inputs[1 - place])
    if number is None or (node.op_type == "Div" and place != 0):
        return None
    return number if node.op_type == "Mul" else 1.0 / number


def _number(value: ir.Value | None) -> float | None:
    """The number of a constant with one element, or the square root of one; None for other values."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Sqrt":
        inner = _number(node.inputs[0])
        return None if inner is None else math.sqrt(inner)
    tensor = value.const_value
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy()).reshape(()))


def _check_mask(node: ir.Node, mask: ir.Value | None) -> None:
    """Checks that a mask depends on graph inputs and single numbers only. Raises `CheckpointError` for weights."""
    seen: set[ir.Value] = set()
    waiting = [mask]
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1:
            raise refuse(
                node, f"its mask holds the weights {value.name!r}: a bias, which can't be taken over"
            )
        maker = value.producer()
        if maker is not None and maker.op_type != "Shape":
            waiting.extend(maker.inputs)


def _made(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise ValueError(f"no node makes {value.name!r}")
    return node
