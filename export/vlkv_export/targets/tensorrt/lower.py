"""Which passes make a graph directory's graphs fit TensorRT, and in which order."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.ops import DOMAIN, score_model
from vlkv_export.passes.attend_in_place import attend_in_place
from vlkv_export.passes.dynamic_cache import scatter_elements
from vlkv_export.passes.edit import observed_heads, remove_unused_functions, sizes
from vlkv_export.passes.fixed_flag import fix_flag
from vlkv_export.passes.float32 import compute_in_float32
from vlkv_export.passes.full_sort import select_without_sort
from vlkv_export.passes.function_bodies import inline_bodies
from vlkv_export.passes.half import compute_in_half
from vlkv_export.passes.observed_rows import give_out_observed_rows
from vlkv_export.passes.plugin_nodes import name_plugins
from vlkv_export.passes.static_cache import fix_capacity
from vlkv_export.passes.within_window import drop_windows

MERGING = {"compress": False, "compress_merge": True}
"""The two graphs that `compress` becomes, and what each does with the evicted."""


def lower_for_tensorrt(
    models: dict[str, ir.Model],
    converted: Mapping[str, ir.TensorProtocol],
    dtype: ir.DataType,
    operators: str,
    capacity: int | None = None,
    in_place: bool = False,
) -> dict[str, dict[str, int]]:
    """Lowers the three graphs in place, and adds what becomes an engine of its own.

    `compress` becomes two graphs, as TensorRT for RTX fails on a Loop inside an If. With the bodies of
    functions, `score` is one too, as its builder crashes on a Loop beside Attention; the decoder then gives out the
    observed rows.

    Args:
        models: the graphs by name.
        converted: tensors in `dtype` that take the place of other initializers, by name.
        dtype: what the graphs compute in.
        operators: `native` keeps nodes for the plugin, `functions` takes the ONNX bodies.
        capacity: slots of every cache, for TensorRT's own updates in place; None for caches of any capacity.
        in_place: the plugin's layer attends, and updates caches of any capacity in place.

    Returns:
        How often each pass rewrote, by graph and pass.
    """
    compress = ir.to_proto(models.pop("compress"))
    models |= {name: ir.from_proto(compress) for name in MERGING}
    counts: dict[str, dict[str, int]] = {name: {} for name in models}
    for name, merging in MERGING.items():
        counts[name]["fixed_flag"] = fix_flag(models[name], "merge", merging)
    for name, model in models.items():
        counts[name]["dtype"] = _compute_in(model, dtype, converted)
    decoder, done = models["decoder"], counts["decoder"]
    done["within_window"] = drop_windows(decoder)
    if in_place:
        done["attend_in_place"] = attend_in_place(decoder)
        common.RemoveUnusedNodesPass()(decoder)
    elif capacity is None:
        done["dynamic_cache"] = scatter_elements(decoder)
    else:
        done["static_cache"] = fix_capacity(decoder, capacity)
    if operators == "functions":
        models["score"] = _score_graph(decoder, dtype)
        counts["score"] = {}
        done["observed_rows"] = give_out_observed_rows(decoder)
        common.RemoveUnusedNodesPass()(decoder)
    for name, model in models.items():
        if operators == "native":
            counts[name]["plugin_nodes"] = name_plugins(model)
        else:
            counts[name]["function_bodies"] = inline_bodies(model)
            counts[name]["full_sort"] = select_without_sort(model)
        common.RemoveUnusedNodesPass()(model)
        remove_unused_functions(model)
    return counts


def _compute_in(model: ir.Model, dtype: ir.DataType, converted: Mapping[str, ir.TensorProtocol]) -> int:
    if dtype == ir.DataType.FLOAT:
        return compute_in_float32(model, converted)
    return compute_in_half(model, dtype, converted)


def _score_graph(decoder: ir.Model, dtype: ir.DataType) -> ir.Model:
    """The graph of one layer's Score; all layers of a decoder have the same sizes and attributes."""
    node = next(node for node in decoder.graph if (node.domain, node.op_type) == (DOMAIN, "Score"))
    scale, threshold = (node.attributes.get_float(name) for name in ("scale", "threshold"))
    cache = sizes(next(value for value in decoder.graph.inputs if value.name == "key_cache.0"))
    kv_heads, dim = (size for size in (cache[1], cache[3]) if isinstance(size, int))
    return score_model(scale, threshold, dtype, observed_heads(node), kv_heads, dim)
