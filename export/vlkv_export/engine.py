"""`vlkv build`: a graph directory lowered for one backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from vlkv.errors import EngineError
from vlkv.storage.directories import check_target, new_directory
from vlkv.storage.files import link_or_copy
from vlkv.storage.manifest import Manifest, read, verify, write
from vlkv_export import convert
from vlkv_export.checkpoint import Tensor
from vlkv_export.directory import WEIGHTS, file_facts, versions
from vlkv_export.graphs import load_graphs
from vlkv_export.int8 import write_int8
from vlkv_export.lower import decoder_matrices, lower_for_onnxruntime
from vlkv_export.tensorrt.engine import BACKENDS as TENSORRT
from vlkv_export.tensorrt.engine import build_into, check_builder, lower_into
from vlkv_export.tensorrt.settings import Settings, resolve
from vlkv_export.watch import Watch
from vlkv_export.weights import link_weights, write_weights

BACKENDS = ("onnxruntime", *TENSORRT)
FLOAT32_WEIGHTS = "weights.float32.safetensors"
INT8_WEIGHTS = "weights.int8.safetensors"
WEIGHT_DTYPES = ("float32", "int8")


def build_engine(
    source: Path,
    target: Path,
    backend: str = "onnxruntime",
    operators: str | None = None,
    watch: Watch | None = None,
    settings: Settings | None = None,
    weights: str = "float32",
) -> Manifest:
    """Writes the engine directory of a graph directory; `target` appears whole or not at all.

    Args:
        source: what `vlkv export` wrote.
        target: the engine directory to make.
        backend: one of `BACKENDS`.
        operators: `native` has vlkv's own kernels (for TensorRT its plugin) score and evict, `functions` their ONNX
            bodies. None is `native`, for TensorRT where a plugin is given.
        watch: told of progress.
        settings: of a TensorRT engine.
        weights: `float32`, or `int8` for the text model's matrices in 8 bits; ONNX Runtime only.

    Raises:
        EngineError: `source` is no graph directory or has a missing or changed file, the backend or a setting is
            unknown, `target` exists and is not vlkv's, or TensorRT's builder is missing or failed.
    """
    watch = watch or Watch()
    if backend not in BACKENDS:
        raise EngineError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if operators not in (None, "native", "functions"):
        raise EngineError(f"unknown operators {operators!r}; known: native, functions")
    settings = settings or Settings()
    if weights not in WEIGHT_DTYPES:
        raise EngineError(f"unknown weights {weights!r}; known: {', '.join(WEIGHT_DTYPES)}")
    if weights != "float32" and backend != "onnxruntime":
        raise EngineError(f"--weights {weights} goes with --backend onnxruntime; for {backend} use --dtype")
    if backend == "onnxruntime" and settings != Settings():
        raise EngineError(
            "--backend onnxruntime takes none of TensorRT's options; it serves any size on any CPU"
        )
    manifest = read(source)
    if manifest.kind != "graphs":
        held = "an engine" if manifest.kind == "engine" else "lowered graphs"
        raise EngineError(f"{source} holds {held}; vlkv build takes a graph directory that vlkv export wrote")
    wanted = None
    if backend != "onnxruntime":
        check_target(target)
        wanted = resolve(backend, settings, operators, manifest)
        if not settings.lower_only:
            check_builder(wanted)
    verify(source, manifest)
    with new_directory(target) as folder:
        models = load_graphs(source, manifest)
        if wanted is None:
            changes = _for_onnxruntime(
                source, folder, models, manifest, operators or "native", weights, watch
            )
        else:
            write_into = lower_into if settings.lower_only else build_into
            changes = write_into(source, folder, models, manifest, wanted, watch)
        for name in manifest.files:
            if not name.endswith((WEIGHTS, ".onnx")):
                link_or_copy(source / name, folder / name)
        files = file_facts(folder, hash_weights=True, report=watch.step)
        built = msgspec.structs.replace(manifest, files=files, **changes)
        write(folder, built)
    return built


def _for_onnxruntime(
    source: Path,
    folder: Path,
    models: dict[str, ir.Model],
    manifest: Manifest,
    operators: str,
    weights: str,
    watch: Watch,
) -> dict[str, Any]:
    """Writes graphs and weights into `folder`: the fields of the manifest that differ from the graph directory's."""
    blocks: dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}
    if weights == "int8":
        matrices = convert.stored(decoder_matrices(models))
        watch.step("rounding the text model's weights to 8 bits")
        watch.total(sum(tensor.length for tensor in matrices.values()))
        blocks = write_int8(source, folder / INT8_WEIGHTS, matrices, watch.data)
    halves = {n: t for n, t in convert.other_weights(models, "float32").items() if n not in blocks}
    converted: dict[str, Tensor] = {}
    if halves:
        kept = {convert.TABLE} - halves.keys()
        halves.setdefault(convert.TABLE, convert.embedding_table(manifest))
        watch.step("converting the weights to float32")
        watch.total(sum(tensor.length for tensor in halves.values()))
        converted = write_weights(source, folder / FLOAT32_WEIGHTS, halves, kept, watch.data)
    watch.step("lowering the graphs")
    wide = {name: convert.external(tensor) for name, tensor in converted.items()}
    lower_for_onnxruntime(models, wide, operators, blocks)
    for name, model in models.items():
        ir.save(model, folder / f"{name}.onnx")
    table = convert.embedding(converted[convert.TABLE]) if converted else manifest.embedding
    written = {FLOAT32_WEIGHTS, INT8_WEIGHTS}
    link_weights(source, folder, sorted((convert.weight_files(models) | {table.file}) - written))
    return {
        "kind": "engine",
        "backend": "onnxruntime",
        "operators": operators,
        "weights": weights,
        "cache_dtype": "float32",
        "embedding": table,
        "versions": manifest.versions | versions("onnxruntime"),
    }
