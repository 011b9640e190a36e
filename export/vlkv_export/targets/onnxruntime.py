"""ONNX Runtime on CPUs: graphs that compute in float32, and weights in one of the registry's formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest, default_precision, vision_graphs
from vlkv.storage.passes import OPTIONAL_PASSES
from vlkv_export.checkpoint import Tensor
from vlkv_export.passes import (
    float32,
    fused_linear,
    group_query_attention,
    multi_head_attention,
    native_attention,
    native_cache,
    native_linear,
    observed_rows,
    recall,
    transposed_weights,
    within_window,
)
from vlkv_export.passes.edit import MICROSOFT, remove_unused_functions
from vlkv_export.passes.products import Stored, stored_weights
from vlkv_export.targets import onnxruntime_cuda
from vlkv_export.targets.spec import PRECISIONS, Options, Write
from vlkv_export.targets.windows import inside_window
from vlkv_export.watch import Watch
from vlkv_export.weights import convert
from vlkv_export.weights.coded import find_coded, take_codes
from vlkv_export.weights.files import place_weights, write_weights
from vlkv_export.weights.matrices import linear_matrices, store_matrices
from vlkv_export.weights.widened import widened

FLOAT32_WEIGHTS = "weights.float32.safetensors"


def prepare(backend: str, options: Options, manifest: Manifest) -> Write:
    """Check the options and return the function that writes the engine; see `spec.Prepare`.

    Raises:
        EngineError: an option that needs native operators was given without them; with an option of a device, see
            `onnxruntime_cuda.prepare`.
    """
    if onnxruntime_cuda.is_for_cuda(options.settings):
        return onnxruntime_cuda.prepare(backend, options, manifest)
    operators, weights = options.operators or "native", options.weights
    native = operators == "native"
    for option, value in {"--weights": weights, "--prompt-precision": options.prompt_precision}.items():
        if not native and value not in (None, "float32"):
            raise EngineError(
                f"{option} {value} goes with --operators native; --operators functions multiplies in float32"
            )
    if options.prompt_precision == "fixed16" and weights not in (None, "int8", "int4"):
        raise EngineError(_not_fixed(f"--weights {weights}"))

    kv_dtype = options.kv_dtype or "float32"
    _check_cache(kv_dtype, native, manifest)
    reduced = kv_dtype != "float32"

    def write(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> dict[str, Any]:
        coded = [matrix for model in models.values() for matrix in find_coded(model)]
        if coded and weights not in (None, "float32"):
            raise EngineError(
                f"--weights {weights}: the checkpoint's matrices are in {coded[0].stored().bits} bits already; leave "
                "--weights out to keep them as they are, or give float32 to widen them"
            )
        codes = take_codes(models) if native and weights is None else {}
        if options.prompt_precision == "fixed16" and weights is None and not codes:
            raise EngineError(_not_fixed("the checkpoint's own"))
        with widened(source, folder, models, watch) as wide:
            return write_from(wide, folder, models, codes, watch)

    def write_from(
        source: Path, folder: Path, models: dict[str, ir.Model], codes: dict[str, Stored], watch: Watch
    ) -> dict[str, Any]:
        matrices = store_matrices(source, folder, models, weights, watch) if native else {}
        own = linear_matrices(models, "decoder", *vision_graphs(manifest)) if native else {}
        as_they_are = own.keys() if weights != "float32" else set()
        placed = _write_others(source, folder, models, manifest, as_they_are, matrices.keys(), watch)
        watch.step("lowering the graphs")
        wide = {name: convert.external(tensor) for name, tensor in placed.items()}
        matrices = {name: Stored((wide[name],)) for name in own.keys() & wide.keys()} | matrices | codes
        passes = OPTIONAL_PASSES if options.passes is None else options.passes
        kept = weights or _kept(codes, manifest.cache_dtype if native else "float32")
        precision = options.prompt_precision or default_precision(kept)
        lower_for_onnxruntime(models, wide, operators, matrices, precision, kv_dtype, passes)
        for name, model in models.items():
            ir.save(model, folder / f"{name}.onnx")
        scale = manifest.embedding.scale
        table = (
            convert.embedding(placed[convert.TABLE], scale) if convert.TABLE in placed else manifest.embedding
        )
        written = {path.name for path in folder.iterdir()}
        others = (convert.weight_files(models) | {table.file}) - written
        place_weights({name: source / name for name in sorted(others)}, folder, watch, options.link)
        return {
            "kind": "engine",
            "backend": backend,
            # the body of Score and the attention over caches of fewer bits know no window
            "text": manifest.text if native and not reduced else inside_window(manifest.text),
            "operators": operators,
            "weights": kept,
            "prompt_precision": precision,
            "cache_dtype": kv_dtype,
            "embedding": table,
            "versions": manifest.versions | {"onnxruntime": version("onnxruntime")},
        }

    return write


def _check_cache(kv_dtype: str, native: bool, manifest: Manifest) -> None:
    """Refuses a cache of fewer bits where the native attention can't replace the graph's."""
    if kv_dtype == "float32":
        return
    if kv_dtype == "float8":
        raise EngineError(
            "--kv-dtype float8 is for GPUs: give --dtype and --operators functions too, or int8"
        )
    if not native:
        raise EngineError(
            f"--kv-dtype {kv_dtype} goes with --operators native; --operators functions has a cache in float32"
        )
    if manifest.text.head_dim % group_query_attention.DIM:
        raise EngineError(
            f"--kv-dtype {kv_dtype} needs heads of a multiple of {group_query_attention.DIM} elements, this model's "
            f"have {manifest.text.head_dim}; leave it out for a cache in float32"
        )


def _not_fixed(weights: str) -> str:
    return (
        f"--prompt-precision fixed16 goes with weights in 8 or 4 bits, not with {weights}; leave it out, or give "
        "--weights int8 or int4"
    )


def _kept(codes: Mapping[str, Stored], floats: str) -> str:
    """What the manifest says of weights that stay as they are."""
    return f"int{max(stored.bits for stored in codes.values())}" if codes else floats


def lower_for_onnxruntime(
    models: dict[str, ir.Model],
    converted: Mapping[str, ir.TensorProtocol],
    operators: str,
    stored: Mapping[str, Stored] = MappingProxyType({}),
    prompt_precision: str = "float32",
    kv_dtype: str = "float32",
    passes: Sequence[str] = OPTIONAL_PASSES,
) -> dict[str, dict[str, int]]:
    """Lowers the three graphs in place.

    Args:
        models: the graphs by name.
        converted: float32 tensors that replace 16-bit initializers, by name.
        operators: `native` leaves scoring, the attention of single tokens and products with weights to the runtime's
            kernels; `functions` keeps the ONNX bodies.
        stored: for native operators, replacements of matrices, by name. Other matrices are read in their dtype.
        prompt_precision: for native operators, the precision of products, one of `PRECISIONS`.
        kv_dtype: for native operators, the dtype of the caches.
        passes: those of `OPTIONAL_PASSES` that run, in their order.

    Returns:
        The counts that the passes returned, by graph and pass.
    """
    native, many = operators == "native", PRECISIONS.index(prompt_precision)
    counts: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        done = counts[name] = {}
        if native:
            done["native_linear"] = native_linear.apply(model, stored=stored, many=many)
        done["float32"] = float32.apply(model, converted=converted, kept=stored_weights(model))
        if name in ("vision", "video") and "multi_head_attention" in passes:
            done["multi_head_attention"] = multi_head_attention.apply(model)
        if name == "decoder":
            if not native or kv_dtype != "float32":
                done["within_window"] = within_window.apply(model)
            done["group_query_attention"] = group_query_attention.apply(model)
            if native:
                done["observed_rows"] = observed_rows.apply(model)
            if native and kv_dtype != "float32":
                done["native_cache"] = native_cache.apply(model, dtype=kv_dtype, many=many)
                if not done["native_cache"]:
                    raise EngineError(
                        f"--kv-dtype {kv_dtype}: this decoder's attention is of a form that vlkv does not replace; "
                        "leave it out for a cache in float32"
                    )
        fitting: dict[str, Callable[[ir.Model], int]] = {"transposed_weights": transposed_weights.apply}
        if native:
            fitting["fused_linear"] = fused_linear.apply
        if native and name == "decoder" and kv_dtype == "float32":
            fitting["native_attention"] = partial(native_attention.apply, many=many)
        for one in passes:
            if one in fitting:
                done[one] = fitting[one](model)
        if native and name == "decoder":
            done["recall"] = recall.apply(model)
        model.graph.opset_imports[MICROSOFT] = 1
        common.RemoveUnusedNodesPass()(model)
        remove_unused_functions(model)
    return counts


def _write_others(
    source: Path,
    folder: Path,
    models: dict[str, ir.Model],
    manifest: Manifest,
    as_they_are: Set[str],
    written: Set[str],
    watch: Watch,
) -> dict[str, Tensor]:
    """Convert weights to float32, except those in `as_they_are`, whose operators read the stored dtype.

    If the matrices in `written` were rewritten, all other weights are too, so the directory does not need the
    checkpoint's files. The token embedding table keeps its dtype, as its rows are read one by one.
    """
    others = {n: t for n, t in convert.all_weights(models).items() if n not in written}
    if not written:
        others = {n: t for n, t in others.items() if t.dtype != "float32" and n not in as_they_are}
    if not others:
        return {}
    kept = set(as_they_are)
    if written or not as_they_are:
        kept |= {convert.TABLE} - others.keys()
        others.setdefault(convert.TABLE, convert.embedding_table(manifest))
    watch.step("converting the weights to float32")
    watch.total(sum(tensor.length for tensor in others.values()))
    return write_weights(source, folder / FLOAT32_WEIGHTS, others, kept, watch.data)
