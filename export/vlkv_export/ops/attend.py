"""VlkvAttend: appends a call's keys and values to the cache and attends over it, as one operator.

The body below is the operator's public definition: standard operators of opset 24.
"""

from onnxscript import script
from onnxscript.onnx_opset import opset24 as op

from vlkv_export.ops.domain import VLKV

MULTIPLE, LARGEST = 8, 256
HEAD_SIZES = f"a multiple of {MULTIPLE} up to {LARGEST}"
"""The head sizes that the plugin's layer supports, in words."""


def takes_head_size(dim: int) -> bool:
    """Whether the plugin's layer supports heads of size `dim`."""
    return dim % MULTIPLE == 0 and 0 < dim <= LARGEST


@script(VLKV, default_opset=op)
def VlkvAttend(query, key, value, key_cache, value_cache, length, count, scale: float):  # noqa: N802
    """Append keys and values to the caches, then attend: token i of a prompt sees slots 0..length + i.

    Inputs: query [B, Hq, S, D], key and value [B, Hkv, S, D], key_cache and value_cache [B, Hkv, C, D] of one float
    dtype; length [B] int64, valid slots before the call; count [B] int64, how many of the S tokens are the prompt's,
    the others are padding. Attribute: scale.
    Outputs: result [B, Hq, S, D], 0 in padding rows; new_key_cache and new_value_cache [B, Hkv, C, D]. The plugin
    writes them in place, and nothing for padding rows, whose slots here hold what is past the valid ones.
    """
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    first = op.Constant(value_ints=[0])
    last = op.Constant(value_ints=[-1])
    around = op.Constant(value_ints=[1, 3])
    new_key_cache = op.TensorScatter(key_cache, key, length)
    new_value_cache = op.TensorScatter(value_cache, value, length)
    slot = op.Range(zero, op.Squeeze(op.Shape(key_cache, start=2, end=3), first), one)
    row = op.Range(zero, op.Squeeze(op.Shape(query, start=2, end=3), first), one)
    visible = slot <= op.Unsqueeze(op.Unsqueeze(length, last) + row, around)
    attended = op.Attention(query, new_key_cache, new_value_cache, visible, scale=scale)
    given = op.Unsqueeze(row < op.Unsqueeze(count, last), around)
    result = op.Where(given, attended, op.CastLike(op.Constant(value_float=0.0), attended))
    return result, new_key_cache, new_value_cache
