"""Evict: keep the best slots of one layer's cache, in order, in a small cache.

The body below is the operator's public definition: standard operators of opset 24.
Sources: VL-Cache (arXiv 2410.23317), keeping the recent and the highest scores; Elastic Cache (arXiv
2407.18121), merging the evicted into the nearest kept.
"""

from onnxscript import BOOL, FLOAT, INT32, INT64, script
from onnxscript.onnx_opset import opset24 as op

from vlkv_export.ops.domain import VLKV


@script(VLKV, default_opset=op)
def Evict(key, value, score, length, keep, sinks, recent, capacity, per_head: int, merge: int):  # noqa: N802
    """Keep min(keep, length) of the first `length` slots: first `sinks`, last `recent`, then by score.

    The order of score: numbers before NaN, higher before lower, ties to the lower slot. Kept slots lie in
    ascending order of slot in the first slots of the outputs; the rest is zero, with slot -1.

    Inputs: key, value [B, H, C, D] of one float dtype, C > 0; score [B, H, C] float32; length, keep, sinks,
    recent [B] int64, sinks + recent <= keep; capacity [] int64, not under min(keep, length).
    Attributes: per_head, 1 selects for each KV head, 0 once by the sum of scores over heads; merge, 1
    averages each evicted slot into the nearest kept one (tie: the lower), in float32, the kept slot counted;
    0 drops the evicted.
    Outputs: key, value [B, H, capacity, D] of the inputs' dtype; slot [B, H, capacity] int32.
    """
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    first = op.Constant(value_ints=[0])
    last = op.Constant(value_ints=[-1])
    heads_axis = op.Constant(value_ints=[1])
    slots_axis = op.Constant(value_ints=[2])
    minus_infinity = op.Constant(value_float=float("-inf"))
    zero_float = op.Constant(value_float=0.0)
    slots = op.Shape(key, start=2, end=3)
    slot_count = op.Squeeze(slots, first)
    slot = op.Range(zero, slot_count, one)
    columns = op.Constant(value_ints=[1, 2])
    valid_length = op.Unsqueeze(length, columns)
    kept = op.Min(op.Unsqueeze(keep, columns), valid_length)

    # Which slots stay. Three kinds: always; numbers, by score; NaN, by slot, where numbers do not suffice.
    shared = op.ReduceSum(score, heads_axis, keepdims=1)
    ranked = op.Where(op.Cast(op.Constant(value_int=per_head), to=BOOL.dtype), score, shared)
    valid = slot < valid_length
    at_start = slot < op.Unsqueeze(sinks, columns)
    at_end = slot >= valid_length - op.Unsqueeze(recent, columns)
    always = op.And(valid, op.Or(at_start, at_end))
    candidate = op.And(valid, op.Not(always))
    is_nan = op.IsNaN(ranked)
    number = op.Cast(op.And(candidate, op.Not(is_nan)), to=INT32.dtype)
    other = op.Cast(op.And(candidate, is_nan), to=INT32.dtype)
    always_count = op.ReduceSum(op.Cast(always, to=INT32.dtype), slots_axis, keepdims=1)
    free = op.Cast(kept, to=INT32.dtype) - always_count
    _ranked, order = op.TopK(op.Where(is_nan, minus_infinity, ranked), slots, axis=2, largest=1, sorted=1)
    number_ranked = op.GatherElements(number, order, axis=2)
    by_rank = number_ranked * op.Cast(
        op.CumSum(number_ranked, op.Constant(value_int=2)) <= free, to=INT32.dtype
    )
    by_score = op.ScatterElements(op.Sub(number, number), order, by_rank, axis=2)
    left = free - op.ReduceSum(by_rank, slots_axis, keepdims=1)
    by_position = other * op.Cast(op.CumSum(other, op.Constant(value_int=2)) <= left, to=INT32.dtype)
    selected = op.Or(always, op.Cast(by_score + by_position, to=BOOL.dtype))

    # A stable partition: `source` lists the kept positions in ascending order, then the others.
    taken = op.CumSum(op.Cast(selected, to=INT32.dtype), op.Constant(value_int=2))
    slot_at_or_before = op.Cast(taken, to=INT64.dtype) - one
    behind = kept + (slot - one - slot_at_or_before)
    destination = op.Where(selected, slot_at_or_before, behind)
    everywhere = op.Expand(slot, op.Shape(destination))
    source = op.ScatterElements(everywhere, destination, everywhere, axis=2)

    new_slot = op.Range(zero, capacity, one)
    filled = new_slot < kept
    source_there = op.Gather(source, op.Min(new_slot, slot_count - one), axis=2)
    new_position = op.Cast(op.Where(filled, source_there, last), to=INT32.dtype)

    # Merging. A kept slot and what is nearest to it are a run of neighbours, from past the middle between the slot
    # and the one before to the middle to the one after. Runs are numbered; what is not valid is one run more.
    lower = op.Max(slot_at_or_before, zero)
    upper = op.Max(op.Min(slot_at_or_before + one, kept - one), zero)
    to_lower = slot - op.GatherElements(source, lower, axis=2)
    to_upper = op.GatherElements(source, upper, axis=2) - slot
    upper_is_nearer = op.And(to_upper > zero, to_upper < to_lower)
    nearest = op.Where(op.Or(slot_at_or_before < zero, upper_is_nearer), upper, lower)
    run = op.Where(op.And(valid, kept > zero), nearest, capacity)
    before = op.Gather(source, op.Clip(new_slot - one, zero, slot_count - one), axis=2)
    after = op.Gather(source, op.Min(new_slot + one, slot_count - one), axis=2)
    two = op.Constant(value_int=2)
    run_start = op.Where(new_slot > zero, (before + source_there) / two + one, zero)
    run_end = op.Where(new_slot + one < kept, (source_there + after) / two + one, valid_length)
    run_size = op.Where(filled, run_end - run_start, one)

    # After t doublings, each row holds the sum of up to 2^t rows of its run from there on: t = log2 of the longest,
    # plus what covers the logarithm's rounding, rounded up. Without merging, t = 0 and a row stays as it is.
    merging = op.Constant(value_int=merge)
    longest = op.Max(op.ReduceMax(run_size, keepdims=0), one)
    bits = op.Log(op.Cast(longest, to=FLOAT.dtype)) / op.Log(op.Constant(value_float=2.0))
    doublings = op.Cast(op.Ceil(bits + op.Constant(value_float=0.001)), to=INT64.dtype)
    key_sum = op.Cast(key, to=FLOAT.dtype)
    value_sum = op.Cast(value, to=FLOAT.dtype)
    step = op.Constant(value_int=1)
    for _doubling in range(merging * doublings):
        ahead = slot + step
        row_ahead = op.Min(ahead, slot_count - one)
        same_run = op.And(ahead < slot_count, op.Equal(op.Gather(run, row_ahead, axis=2), run))
        joins = op.Unsqueeze(same_run, last)
        key_sum = key_sum + op.Where(joins, op.Gather(key_sum, row_ahead, axis=2), zero_float)
        value_sum = value_sum + op.Where(joins, op.Gather(value_sum, row_ahead, axis=2), zero_float)
        step = step + step
    is_merging = op.Cast(merging, to=BOOL.dtype)
    from_row = op.Where(is_merging, op.Min(run_start, slot_count - one), source_there)
    divisor = op.Cast(op.Where(is_merging, run_size, one), to=FLOAT.dtype)
    rows = op.Unsqueeze(from_row, last)
    kept_key = op.GatherND(key_sum, rows, batch_dims=2) / op.Unsqueeze(divisor, last)
    kept_value = op.GatherND(value_sum, rows, batch_dims=2) / op.Unsqueeze(divisor, last)
    there = op.Unsqueeze(filled, last)
    new_key = op.CastLike(op.Where(there, kept_key, zero_float), key)
    new_value = op.CastLike(op.Where(there, kept_value, zero_float), value)
    return new_key, new_value, new_position
