"""ONNX Runtime on CPUs: graphs that compute in float32, and weights in one of the registry's formats."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest
from vlkv_export.checkpoint import Tensor
from vlkv_export.passes.edit import MICROSOFT, remove_unused_functions
from vlkv_export.passes.float32 import compute_in_float32
from vlkv_export.passes.group_query_attention import use_group_query_attention
from vlkv_export.passes.multi_head_attention import use_multi_head_attention
from vlkv_export.passes.native_attention import attend_natively
from vlkv_export.passes.observed_rows import give_out_observed_rows
from vlkv_export.passes.transposed_weights import fuse_transposed_weights
from vlkv_export.targets.spec import Options, Settings, Write
from vlkv_export.watch import Watch
from vlkv_export.weights import convert
from vlkv_export.weights.files import link_weights, write_weights
from vlkv_export.weights.registry import FORMATS

FLOAT32_WEIGHTS = "weights.float32.safetensors"


def prepare(backend: str, options: Options, manifest: Manifest) -> Write:
    """Check the options and return what writes the engine; see `spec.Prepare`.

    Raises:
        EngineError: an option of a device was given.
    """
    if options.settings != Settings():
        raise EngineError(
            f"--backend {backend} takes none of TensorRT's options; it serves any size on any CPU"
        )
    operators, weights = options.operators or "native", options.weights

    def write(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> dict[str, Any]:
        FORMATS[weights](source, folder, models, watch)
        placed = _write_float32(source, folder, models, manifest, watch)
        watch.step("lowering the graphs")
        lower_for_onnxruntime(models, {n: convert.external(t) for n, t in placed.items()}, operators)
        for name, model in models.items():
            ir.save(model, folder / f"{name}.onnx")
        scale = manifest.embedding.scale
        table = convert.embedding(placed[convert.TABLE], scale) if placed else manifest.embedding
        written = {path.name for path in folder.iterdir()}
        link_weights(source, folder, sorted((convert.weight_files(models) | {table.file}) - written))
        return {
            "kind": "engine",
            "backend": backend,
            "operators": operators,
            "weights": weights,
            "cache_dtype": "float32",
            "embedding": table,
            "versions": manifest.versions | {"onnxruntime": version("onnxruntime")},
        }

    return write


def lower_for_onnxruntime(
    models: dict[str, ir.Model],
    converted: Mapping[str, ir.TensorProtocol],
    operators: str,
) -> dict[str, dict[str, int]]:
    """Lowers the three graphs in place.

    Args:
        models: the graphs by name.
        converted: float32 tensors that take the place of 16-bit initializers, by name.
        operators: `native` leaves scoring, and the attention of single tokens, to the runtime's kernels, `functions`
            keeps the ONNX bodies.

    Returns:
        How often each pass rewrote, by graph and pass.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        done = counts[name] = {}
        done["float32"] = compute_in_float32(model, converted)
        if name == "vision":
            done["multi_head_attention"] = use_multi_head_attention(model)
        if name == "decoder":
            done["group_query_attention"] = use_group_query_attention(model)
            if operators == "native":
                done["native_attention"] = attend_natively(model)
                done["observed_rows"] = give_out_observed_rows(model)
        done["transposed_weights"] = fuse_transposed_weights(model)
        model.graph.opset_imports[MICROSOFT] = 1
        common.RemoveUnusedNodesPass()(model)
        remove_unused_functions(model)
    return counts


def _write_float32(
    source: Path, folder: Path, models: dict[str, ir.Model], manifest: Manifest, watch: Watch
) -> dict[str, Tensor]:
    """Write the graphs' 16-bit weights and the embedding table in float32; nothing where all are float32."""
    halves = convert.other_weights(models, "float32")
    if not halves:
        return {}
    # the table beside them keeps its dtype, unless a graph reads it too
    kept = {convert.TABLE} - halves.keys()
    halves.setdefault(convert.TABLE, convert.embedding_table(manifest))
    watch.step("converting the weights to float32")
    watch.total(sum(tensor.length for tensor in halves.values()))
    return write_weights(source, folder / FLOAT32_WEIGHTS, halves, kept, watch.data)
