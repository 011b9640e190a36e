"""Lowers the graphs of a graph directory for TensorRT: the passes, in their order."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.ops import DOMAIN, score_model
from vlkv_export.passes import (
    attend_in_place,
    dynamic_cache,
    fixed_flag,
    float32,
    full_sort,
    function_bodies,
    half,
    observed_rows,
    plugin_nodes,
    static_cache,
    within_window,
)
from vlkv_export.passes.edit import observed_heads, remove_unused_functions, sizes
from vlkv_export.targets.spec import MERGING


def lower_for_tensorrt(
    models: dict[str, ir.Model],
    converted: Mapping[str, ir.TensorProtocol],
    dtype: ir.DataType,
    operators: str,
    capacity: int | None = None,
    in_place: bool = False,
) -> dict[str, dict[str, int]]:
    """Lowers the three graphs in place, and adds graphs that need engines of their own.

    `compress` becomes two graphs, as TensorRT for RTX fails on a Loop inside an If. With the ONNX bodies of operators,
    `score` becomes a graph too, as the builder crashes on a Loop beside Attention; the decoder then returns the query
    rows of the observation window.

    Args:
        models: the graphs by name.
        converted: tensors of `dtype` that replace other initializers, by name.
        dtype: the dtype of the graphs' arithmetic.
        operators: `native` keeps nodes for the plugin, `functions` inlines the ONNX bodies.
        capacity: slots of every cache, for TensorRT's own updates in place; None for caches of any capacity.
        in_place: the plugin's layer attends, and updates caches of any capacity in place.

    Returns:
        The counts that the passes returned, by graph and pass.
    """
    compress = ir.to_proto(models.pop("compress"))
    models |= {name: ir.from_proto(compress) for name in MERGING}
    counts: dict[str, dict[str, int]] = {name: {} for name in models}
    for name, merging in MERGING.items():
        counts[name]["fixed_flag"] = fixed_flag.apply(models[name], name="merge", value=merging)
    for name, model in models.items():
        counts[name]["dtype"] = _compute_in(model, dtype, converted)
    decoder, done = models["decoder"], counts["decoder"]
    done["within_window"] = within_window.apply(decoder)
    if in_place:
        done["attend_in_place"] = attend_in_place.apply(decoder)
        common.RemoveUnusedNodesPass()(decoder)
    elif capacity is None:
        done["dynamic_cache"] = dynamic_cache.apply(decoder)
    else:
        done["static_cache"] = static_cache.apply(decoder, capacity=capacity)
    if operators == "functions":
        models["score"] = _score_graph(decoder, dtype)
        counts["score"] = {}
        done["observed_rows"] = observed_rows.apply(decoder)
        common.RemoveUnusedNodesPass()(decoder)
    for name, model in models.items():
        if operators == "native":
            counts[name]["plugin_nodes"] = plugin_nodes.apply(model)
        else:
            counts[name]["function_bodies"] = function_bodies.apply(model)
            counts[name]["full_sort"] = full_sort.apply(model)
        common.RemoveUnusedNodesPass()(model)
        remove_unused_functions(model)
    return counts


def _compute_in(model: ir.Model, dtype: ir.DataType, converted: Mapping[str, ir.TensorProtocol]) -> int:
    if dtype == ir.DataType.FLOAT:
        return float32.apply(model, converted=converted)
    return half.apply(model, dtype=dtype, converted=converted)


def _score_graph(decoder: ir.Model, dtype: ir.DataType) -> ir.Model:
    """The graph of one layer's Score; all layers of a decoder have the same sizes and attributes."""
    node = next(node for node in decoder.graph if (node.domain, node.op_type) == (DOMAIN, "Score"))
    scale, threshold = (node.attributes.get_float(name) for name in ("scale", "threshold"))
    cache = sizes(next(value for value in decoder.graph.inputs if value.name == "key_cache.0"))
    kv_heads, dim = (size for size in (cache[1], cache[3]) if isinstance(size, int))
    return score_model(scale, threshold, dtype, observed_heads(node), kv_heads, dim)
