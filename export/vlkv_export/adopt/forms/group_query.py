"""`com.microsoft.GroupQueryAttention` with past and present: onnxruntime-genai's and onnx-community's graphs.

Applies to: past and present are the layer's caches; queries, keys and values are separate or packed; rotary positions
are applied by the node or before it. Refused by name: soft caps, attention bias, head sinks, quantised caches, smooth
softmax.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.adopt.forms.spec import Attention, Caches, Rotary, refuse
from vlkv_export.passes.edit import MICROSOFT, operand, sizes

NEUTRAL = {"softcap": 0.0, "smooth_softmax": (0, -1), "qk_output": 0, "kv_cache_bit_width": 0}
NAMES = {9: None, 10: "an attention bias", 11: "a head sink", 12: "a scale of quantised keys"}


def match(caches: Caches) -> Attention | None:
    """Matches the node that produces both present caches; see `Form`."""
    node = caches.present[0].producer()
    if node is None or node.op_type != "GroupQueryAttention" or node.domain != MICROSOFT:
        return None
    if caches.present[1].producer() is not node or operand(node, 3) is not caches.past[0]:
        raise refuse(node, f"its caches are not past and present of layer {caches.layer}")
    _check(node, caches)
    query, key, value = (node.inputs[index] for index in range(3))
    if query is None or (key is None) != (value is None):
        raise refuse(node, "queries without keys or values, neither packed nor apart")
    window = node.attributes.get_int("local_window_size", -1)
    return Attention(
        caches=caches,
        query=query,
        key=key,
        value=value,
        scale=node.attributes.get_float("scale", 0.0) or caches.head_dim**-0.5,
        result=node.outputs[0],
        rotary=_rotary(node),
        window=window if window > 0 else None,
    )


def _check(node: ir.Node, caches: Caches) -> None:
    attributes = node.attributes
    heads = (attributes.get_int("num_heads"), attributes.get_int("kv_num_heads"))
    if heads != (caches.query_heads, caches.kv_heads):
        raise refuse(node, f"{heads} heads; the configuration says {caches.query_heads, caches.kv_heads}")
    for name, neutral in NEUTRAL.items():
        found = attributes[name].value if name in attributes else None
        allowed = neutral if isinstance(neutral, tuple) else (neutral,)
        if found is not None and found not in allowed:
            raise refuse(node, f"{name} {found} can't be taken over; only {allowed[0]} can")
    for kind in ("k_quant_type", "v_quant_type"):
        if kind in attributes and attributes.get_string(kind) != "NONE":
            raise refuse(node, f"{kind} {attributes.get_string(kind)!r}: export with a cache of floats")
    for index, said in NAMES.items():
        if said is not None and index < len(node.inputs) and node.inputs[index] is not None:
            raise refuse(node, f"input {index} is {said}, which can't be taken over")


def _rotary(node: ir.Node) -> Rotary | None:
    if not node.attributes.get_int("do_rotary", 0):
        return None
    cos, sin = operand(node, 7), operand(node, 8)
    half = sizes(cos)[-1]
    if not isinstance(half, int):
        raise refuse(node, f"the size of its rotary table {cos.name!r} is not known")
    return Rotary(cos, sin, bool(node.attributes.get_int("rotary_interleaved", 0)), 2 * half)
