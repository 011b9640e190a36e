"""`vlkv build`: builds an engine for one target from a graph directory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from vlkv.errors import EngineError
from vlkv.storage.directories import check_apart, check_target, new_directory
from vlkv.storage.files import copy_file
from vlkv.storage.manifest import Manifest, read, verify, write
from vlkv.storage.passes import check_passes
from vlkv_export.directory import WEIGHTS, file_facts
from vlkv_export.graphs import load_graphs
from vlkv_export.targets.registry import TARGETS
from vlkv_export.targets.spec import KV_DTYPES, PRECISIONS, Options, Settings
from vlkv_export.watch import Watch
from vlkv_export.weights.registry import FORMATS

OPERATORS = ("native", "functions")


def build_engine(
    source: Path,
    target: Path,
    backend: str = "onnxruntime",
    operators: str | None = None,
    watch: Watch | None = None,
    settings: Settings | None = None,
    weights: str | None = None,
    prompt_precision: str | None = None,
    link: bool = False,
    kv_dtype: str | None = None,
    passes: Sequence[str] | None = None,
) -> Manifest:
    """Writes the engine directory of a graph directory; `target` appears whole or not at all.

    Args:
        source: what `vlkv export` wrote.
        target: the engine directory to make.
        backend: one of `TARGETS`.
        operators: `native` scores and evicts with vlkv's kernels (with its plugin on TensorRT), `functions` with ONNX
            bodies. None is `native`; on TensorRT without a plugin it is `functions`.
        watch: the progress callbacks.
        settings: the options of a TensorRT engine.
        weights: one of `FORMATS`, for the text model's matrices, and for the tower's if it is a float format; ONNX
            Runtime only. None keeps the checkpoint's dtype; without native operators it is float32.
        prompt_precision: one of `PRECISIONS`; native operators on ONNX Runtime only. `bfloat16` is for products of more
            than 16 rows, and for attention of prompts. None is `fixed16` with weights in 8 or 4 bits, else `float32`.
        link: whether weights that are taken as they are may be hard links to the checkpoint's. Whoever writes to those
            files then changes the engine. Else they are copies, or clones where the file system has them.
        kv_dtype: one of `KV_DTYPES`, of the KV cache; native operators on ONNX Runtime only if not float32. None
            is float32; on TensorRT the dtype of `settings`.
        passes: those of `vlkv.storage.passes.OPTIONAL_PASSES` that run, in their order; ONNX Runtime on CPUs only. None
            is all.

    Raises:
        EngineError: `source` is not a graph directory or has a missing or changed file, the backend or a setting is
            unknown, `target` exists and is not vlkv's, or TensorRT's builder is missing or failed.
    """
    watch = watch or Watch()
    chosen = None if passes is None else check_passes(passes)
    options = Options(operators, weights, prompt_precision, kv_dtype, settings or Settings(), link, chosen)
    _known("backend", backend, TARGETS)
    if operators is not None:
        _known("operators", operators, OPERATORS)
    if weights is not None:
        _known("weights", weights, FORMATS)
    if prompt_precision is not None:
        _known("prompt precision", prompt_precision, PRECISIONS)
    if kv_dtype is not None:
        _known("KV dtype", kv_dtype, KV_DTYPES)
    manifest = read(source)
    if manifest.kind != "graphs":
        held = "an engine" if manifest.kind == "engine" else "lowered graphs"
        raise EngineError(f"{source} holds {held}; vlkv build takes a graph directory that vlkv export wrote")
    check_target(target)
    check_apart(source, target)
    write_into = TARGETS[backend](backend, options, manifest)
    verify(source, manifest)
    with new_directory(target) as folder:
        models = load_graphs(source, manifest)
        changes = write_into(source, folder, models, watch)
        for name in manifest.files:
            if not name.endswith((WEIGHTS, ".onnx")):
                copy_file(source / name, folder / name)
        files = file_facts(folder, hash_weights=True, report=watch.step)
        built = msgspec.structs.replace(manifest, files=files, **changes)
        write(folder, built)
    return built


def _known(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise EngineError(f"unknown {option} {value!r}; known: {', '.join(known)}")
