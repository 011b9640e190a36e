"""Masks of sliding windows, read and taken away: for engines whose prompts and answers end inside the window."""

from __future__ import annotations

import msgspec
import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.storage.manifest import TextFacts
from vlkv_export.passes.edit import operand, producer


def window_of(mask: ir.Value | None) -> tuple[ir.Value, int] | None:
    """`And(causal, slot > last - window)` read back: the causal mask and the window."""
    both = producer(mask, "And")
    after = producer(both.inputs[1], "Greater") if both else None
    first = producer(after.inputs[1], "Sub") if after else None
    size = operand(first, 1).const_value if first else None
    if both is None or size is None:
        return None
    return operand(both, 0), int(size.numpy())


def drop_windows(model: ir.Model) -> int:
    """Each Attention with a sliding window sees all slots up to its own; right while no call has more than those."""
    found = 0
    for node in model.graph:
        bound = window_of(node.inputs[3]) if node.op_type == "Attention" and len(node.inputs) == 4 else None
        if bound is not None:
            node.replace_input_with(3, bound[0])
            found += 1
    common.RemoveUnusedNodesPass()(model)
    return found


def inside_window(text: TextFacts) -> TextFacts:
    """The same where prompts and answers end inside the smallest window."""
    windows = [window for window in text.layer_windows if window]
    if not windows:
        return text
    most, smallest = min(text.max_positions, *windows), min(windows)
    return msgspec.structs.replace(text, max_positions=most, sliding_window=smallest, layer_windows=())
