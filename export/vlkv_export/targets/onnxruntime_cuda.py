"""ONNX Runtime on CUDA: graphs that compute in float16 or bfloat16, and caches that are updated in place on the device.

Unverified on a GPU: no engine of this kind ran on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import EngineError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.storage.manifest import DeviceFacts, Manifest
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.ops.attend import HEAD_SIZES, takes_head_size
from vlkv_export.passes import (
    attend_in_place,
    device_operators,
    fixed_flag,
    group_query_attention,
    half,
    multi_head_attention,
    quantised_cache,
    quantised_evict,
    transposed_weights,
    within_window,
)
from vlkv_export.passes.edit import MICROSOFT, remove_unused_functions
from vlkv_export.targets.calibrate import draw_tokens, measured_scales
from vlkv_export.targets.spec import MERGING, Options, Settings, Write, within
from vlkv_export.targets.windows import inside_window
from vlkv_export.watch import Watch
from vlkv_export.weights.convert import (
    DTYPES,
    TABLE,
    embedding,
    embedding_table,
    external,
    other_weights,
    weight_files,
)
from vlkv_export.weights.files import place_weights, write_weights
from vlkv_export.weights.widened import widened

CONVERTED = "weights.converted.safetensors"
EMBEDDING = "embedding.safetensors"
HALF: tuple[Dtype, ...] = ("float16", "bfloat16")
MAX_BATCH = 1024
SINCE = (1, 31)
"""The ONNX Runtime whose GroupQueryAttention has caches of 8 bits on CPUs and on CUDA."""
QUANTISED = {"int8": quantised_cache.INT8, "float8": quantised_cache.FLOAT8}
"""By the option's values."""
STORED = {quantised_cache.INT8: "int8-channel", quantised_cache.FLOAT8: "float8"}
"""The manifest's names: the CPU's int8 has a scale per token beside its codes."""
ONE = np.ones(1, np.float32)


def prepare(backend: str, options: Options, manifest: Manifest) -> Write:
    """Check the options and return the function that writes the engine; see `spec.Prepare`.

    Raises:
        EngineError: an option is TensorRT's or the CPU's alone, its value is outside its range, or the checkpoint's
            heads have a size that vlkv's attention does not take.
    """
    settings = options.settings
    dtype = _half(backend, settings.dtype)
    tensorrt = {
        "--compute-capability": bool(settings.compute_capabilities),
        "--plugin": settings.plugin is not None,
        "--lower-only": settings.lower_only,
        f"--cache {settings.cache}": settings.cache not in (None, "in-place"),
    }
    cpu = {
        "--weights": options.weights,
        "--prompt-precision": options.prompt_precision,
        "--passes": None if options.passes is None else ",".join(options.passes),
    }
    for option in [name for name, given in tensorrt.items() if given]:
        raise EngineError(f"{option} is TensorRT's; --backend {backend} on a GPU takes --dtype and sizes")
    for option, value in cpu.items():
        if value is not None:
            raise EngineError(f"{option} {value} is for CPUs; --dtype {dtype} sets weights and caches alike")
    operators, dim = options.operators or "native", manifest.text.head_dim
    if operators == "native" and not takes_head_size(dim):
        raise EngineError(
            f"--operators native needs a head size that is {HEAD_SIZES}, not {dim}; use --operators functions"
        )
    stored = _stored(options.kv_dtype, dtype, operators)
    longest = manifest.text.max_positions
    capacity = longest if settings.capacity is None else settings.capacity
    within("capacity", capacity, longest, "the checkpoint's positions")
    within("max-batch", settings.batch, MAX_BATCH, "the limit")
    within("chunk", settings.chunk, 2**31 - 1, "the limit")
    device = DeviceFacts((), capacity, settings.batch, min(settings.chunk, capacity), "in-place")
    # neither vlkv's attention nor the body of Score knows of windows
    manifest = msgspec.structs.replace(manifest, text=inside_window(manifest.text))

    def write(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> dict[str, Any]:
        with widened(source, folder, models, watch) as wide:
            return write_from(wide, folder, models, watch)

    def write_from(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> dict[str, Any]:
        others, placed = other_weights(models, dtype), {}
        if others:
            watch.step(f"converting the weights to {dtype}")
            watch.total(sum(tensor.length for tensor in others.values()))
            placed = write_weights(source, folder / CONVERTED, others, set(), watch.data, dtype)
        watch.step("lowering the graphs")
        converted = {name: external(tensor) for name, tensor in placed.items()}
        counts = lower_for_cuda(models, converted, DTYPES[dtype], operators)
        if not counts["decoder"]["attention"]:
            raise EngineError(
                f"--dtype {dtype}: this decoder's attention is of a form that vlkv does not replace; leave it out, for "
                "an engine for CPUs"
            )
        table = write_weights(source, folder / EMBEDDING, {TABLE: embedding_table(manifest)}, {TABLE})[TABLE]
        looked_up = embedding(table, manifest.embedding.scale)
        own = weight_files(models) - {CONVERTED}
        place_weights({name: source / name for name in sorted(own)}, folder, watch, options.link)
        if stored is not None:
            if stored is quantised_cache.INT8:
                watch.step("measuring the caches")
                ir.save(models["decoder"], folder / "decoder.onnx")
                ids = draw_tokens(manifest.text, manifest.tokens.bos)
                rows = TokenEmbedding(folder, looked_up).rows(ids)
                scales = measured_scales(folder / "decoder.onnx", manifest.text, rows)
            else:
                scales = [(ONE, ONE)] * manifest.text.layers
            quantised_cache.apply(models["decoder"], dtype=stored, scales=scales)
            for name in MERGING:
                quantised_evict.apply(models[name], dtype=stored)
        for name, model in models.items():
            ir.save(model, folder / f"{name}.onnx")
        return {
            "kind": "engine",
            "backend": backend,
            "text": manifest.text,
            "operators": operators,
            "cache_dtype": dtype if stored is None else STORED[stored],
            "weights": dtype,
            "device": device,
            "embedding": looked_up,
            "versions": manifest.versions | {"onnxruntime": version("onnxruntime")},
        }

    return write


def _stored(kv_dtype: str | None, dtype: str, operators: str) -> ir.DataType | None:
    """What the caches hold, if not numbers of the engine's dtype."""
    if kv_dtype in (None, dtype):
        return None
    if kv_dtype not in QUANTISED:
        raise EngineError(
            f"--kv-dtype {kv_dtype} does not go with --dtype {dtype}: leave it out, or give int8 or float8 with "
            "--operators functions"
        )
    if operators != "functions":
        raise EngineError(
            f"--kv-dtype {kv_dtype} goes with --operators functions on CUDA: vlkv's own attention reads float16 and "
            "bfloat16 there"
        )
    if kv_dtype == "int8" and dtype != "float16":
        raise EngineError(
            f"--kv-dtype int8 needs --dtype float16, not {dtype}: its scales are measured on the CPU, where ONNX "
            "Runtime has no bfloat16; float8 needs no scales"
        )
    installed = tuple(map(int, version("onnxruntime").split(".")[:2]))
    if installed < SINCE:
        raise EngineError(
            f"--kv-dtype {kv_dtype} on CUDA needs ONNX Runtime {'.'.join(map(str, SINCE))} or later, not "
            f"{version('onnxruntime')}"
        )
    return QUANTISED[kv_dtype]


def _half(backend: str, wanted: str | None) -> Dtype:
    for dtype in HALF:
        if dtype == wanted:
            return dtype
    raise EngineError(
        f"--dtype {wanted or 'is missing'}: on --backend {backend} it is float16 or bfloat16, for --device cuda, "
        "whose attention has no float32; leave TensorRT's options and --dtype out for CPUs"
    )


def is_for_cuda(settings: Settings) -> bool:
    """Whether options of a device were given, so that the engine is not for CPUs."""
    return settings != Settings()


def lower_for_cuda(
    models: dict[str, ir.Model],
    converted: Mapping[str, ir.TensorProtocol],
    dtype: ir.DataType,
    operators: str,
) -> dict[str, dict[str, int]]:
    """Lowers the graphs in place; `compress` becomes two graphs, one of which merges evicted tokens.

    Args:
        models: the graphs by name.
        converted: tensors of `dtype` that replace other initializers, by name.
        dtype: FLOAT16 or BFLOAT16, of the graphs' arithmetic and of the caches.
        operators: `native` for vlkv's operators of the CUDA provider; `functions` for `GroupQueryAttention` and the
            ONNX bodies of Score and Evict.

    Returns:
        The counts that the passes returned, by graph and pass.
    """
    compress = ir.to_proto(models.pop("compress"))
    models |= {name: ir.from_proto(compress) for name in MERGING}
    counts: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        done = counts[name] = {}
        if name in MERGING:
            done["fixed_flag"] = fixed_flag.apply(model, name="merge", value=MERGING[name])
        done["half"] = half.apply(model, dtype=dtype, converted=converted)
        if name == "decoder":
            done["within_window"] = within_window.apply(model)
            replaced = attend_in_place if operators == "native" else group_query_attention
            done["attention"] = replaced.apply(model)
        if name in ("vision", "video"):
            done["multi_head_attention"] = multi_head_attention.apply(model)
        done["transposed_weights"] = transposed_weights.apply(model)
        model.graph.opset_imports[MICROSOFT] = 1
        common.RemoveUnusedNodesPass()(model)
        if operators == "native":
            done["device_operators"] = device_operators.apply(model)
        remove_unused_functions(model)
    return counts
