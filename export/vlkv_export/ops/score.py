"""Score: the attention that each cache slot receives from the observation window, and the attention's sparsity.

The body below is the operator's public definition: standard operators of opset 24, one tile of rows at a
time.
Source: VL-Cache (arXiv 2410.23317), the accumulated attention scores and the layer sparsity.
"""

from onnxscript import FLOAT, INT32, INT64, script
from onnxscript.onnx_opset import opset24 as op

from vlkv_export.ops.domain import VLKV


@script(VLKV, default_opset=op)
def Score(query, key, row_position, scale: float, threshold: float):  # noqa: N802
    """Sum each key's attention over the observed rows, and count the weights that are as good as zero.

    Row i of prompt b attends to keys 0..row_position[b, i]; -1 marks a padding row. A = softmax(scale * q k)
    over them, in float32. Rows go through in tiles of at most 64, so that memory is O(B Hq 64 C) and never
    O(B Hq W C). The last tile is filled up with padding rows: all tiles have one shape.

    Inputs: query [B, Hq, W, D] and key [B, Hkv, C, D] of one float dtype; row_position [B, W] int64.
    Attributes: scale; threshold p.
    Outputs: score [B, Hkv, C] float32, the sum of A over the rows and the query heads of each KV group;
    sparsity [B] float32, the share of attended (row, key, query head) with A < p * max over the row's keys,
    which is s < max(s) + ln p; 0 where nothing is attended. A row of a query head whose softmax is not finite
    counts nowhere.
    """
    batch = op.Shape(query, start=0, end=1)
    heads = op.Shape(query, start=1, end=2)
    rows = op.Shape(query, start=2, end=3)
    dim = op.Shape(query, start=3, end=4)
    kv_heads = op.Shape(key, start=1, end=2)
    slots = op.Shape(key, start=2, end=3)
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    first = op.Constant(value_ints=[0])
    last = op.Constant(value_ints=[-1])
    no_weight = op.Constant(value_float=0.0)
    minus_infinity = op.Constant(value_float=float("-inf"))
    factor = op.Constant(value_float=scale)
    log_threshold = op.Log(op.Constant(value_float=threshold))

    group = heads / kv_heads
    grouped_shape = op.Concat(batch, kv_heads, group, rows, dim, axis=0)
    grouped = op.Reshape(query, grouped_shape, allowzero=1)
    transposed = op.Transpose(op.Cast(key, to=FLOAT.dtype), perm=[0, 1, 3, 2])
    slot = op.Range(zero, op.Squeeze(slots, first), one)

    tile = op.Min(rows, op.Constant(value_ints=[64]))
    tiles = (rows + op.Constant(value_ints=[63])) / op.Constant(value_ints=[64])
    tile_rows = op.Range(zero, op.Squeeze(tile, first), one)
    flat_shape = op.Concat(batch, kv_heads, group * tile, dim, axis=0)
    tile_shape = op.Concat(batch, kv_heads, group, tile, slots, axis=0)
    summed = op.Expand(no_weight, op.Concat(batch, kv_heads, slots, axis=0))
    below = op.Expand(zero, batch)
    pairs = op.Expand(zero, batch)
    for index in range(op.Squeeze(tiles, first)):
        row = index * tile + tile_rows
        row_there = op.Min(row, rows - one)
        position = op.Where(row < rows, op.Gather(row_position, row_there, axis=1), last)
        limit = op.Unsqueeze(position, op.Constant(value_ints=[1, 2, 4]))
        attended = slot <= limit
        flat = op.Reshape(op.Gather(grouped, row_there, axis=3), flat_shape, allowzero=1)
        products = op.MatMul(op.Cast(flat, to=FLOAT.dtype) * factor, transposed)
        logits = op.Where(attended, op.Reshape(products, tile_shape, allowzero=1), minus_infinity)
        peak = op.ReduceMax(logits, last, keepdims=1)
        weight = op.Exp(logits - peak)
        total = op.ReduceSum(weight, last, keepdims=1)
        # A row without keys has exp(-inf - -inf), and so a total that is NaN, as has one that is not finite.
        usable = total > no_weight
        share = op.Where(usable, weight / total, no_weight)
        summed = summed + op.ReduceSum(share, op.Constant(value_ints=[2, 3]), keepdims=0)
        small = op.And(op.And(attended, usable), logits < peak + log_threshold)
        small_keys = op.Cast(op.ReduceSum(op.Cast(small, to=INT32.dtype), last), to=INT64.dtype)
        below = below + op.ReduceSum(small_keys, op.Constant(value_ints=[1, 2, 3, 4]), keepdims=0)
        row_keys = op.Cast(usable, to=INT64.dtype) * (limit + one)
        pairs = pairs + op.ReduceSum(row_keys, op.Constant(value_ints=[1, 2, 3, 4]), keepdims=0)

    sparsity = op.Cast(below, to=FLOAT.dtype) / op.Cast(op.Max(pairs, one), to=FLOAT.dtype)
    return summed, sparsity
