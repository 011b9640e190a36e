"""Selection without a sort, for runtimes whose TopK has a limit; Evict's body selects with TopK.

It is not an operator of its own: the pass `full_sort` replaces the sort by it.
"""

from onnxscript import BOOL, INT32, script
from onnxscript.onnx_opset import opset24 as op

from vlkv_export.ops.domain import VLKV


@script(VLKV, default_opset=op)
def SelectHighest(ranked, candidate, free):  # noqa: N802
    """Choose the `free` highest of the candidates, ties to the lower slot; all of them where they are no more.

    The lowest value to choose is enclosed by two values of the data, which move inwards past the middle between
    them. A step leaves half of the interval at most: fewer than 300 steps from the whole range of float32, 2^129,
    to the least difference of two numbers, 2^-149; about 20 for scores.

    Inputs: ranked [B, H, C] float32 without NaN; candidate [B, H, C] int32, 0 or 1; free [B, 1, 1] int32.
    Outputs: chosen [B, H, C] int32, 0 or 1.
    """
    slots_axis = op.Constant(value_ints=[2])
    infinity = op.Constant(value_float=float("inf"))
    minus_infinity = op.Constant(value_float=float("-inf"))
    largest = op.Constant(value_float=3.4028234663852886e38)
    smallest = op.Constant(value_float=-3.4028234663852886e38)
    half = op.Constant(value_float=0.5)
    allowed = op.Cast(candidate, to=BOOL.dtype)
    low = op.ReduceMin(op.Where(allowed, ranked, infinity), slots_axis, keepdims=1)
    high = op.ReduceMax(op.Where(allowed, ranked, minus_infinity), slots_axis, keepdims=1)
    for _step in range(300):
        between = half * op.Max(low, smallest) + half * op.Min(high, largest)
        middle = op.Where(between < high, op.Max(between, low), low)
        above = op.And(allowed, ranked > middle)
        below = op.And(allowed, op.Not(ranked > middle))
        enough = op.ReduceSum(op.Cast(above, to=INT32.dtype), slots_axis, keepdims=1) >= free
        least_above = op.ReduceMin(op.Where(above, ranked, infinity), slots_axis, keepdims=1)
        most_below = op.ReduceMax(op.Where(below, ranked, minus_infinity), slots_axis, keepdims=1)
        wide = low < high
        low = op.Where(op.And(wide, enough), least_above, low)
        high = op.Where(op.And(wide, op.Not(enough)), most_below, high)
        apart = op.Cast(low < high, to=INT32.dtype)
        closed = op.Not(op.Cast(op.ReduceMax(apart, keepdims=0), to=BOOL.dtype))
        if closed:
            break
    better = op.And(allowed, ranked > high)
    equal = op.Cast(op.And(allowed, ranked == high), to=INT32.dtype)
    sure = op.Cast(better, to=INT32.dtype)
    room = free - op.ReduceSum(sure, slots_axis, keepdims=1)
    first = op.Cast(op.CumSum(equal, op.Constant(value_int=2)) <= room, to=INT32.dtype)
    return sure + equal * first
