"""`vlkv build`: a graph directory lowered for one backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from vlkv.errors import EngineError
from vlkv.export.checkpoint import Tensor
from vlkv.export.directory import WEIGHTS, file_facts, versions
from vlkv.export.lower import GRAPHS, lower_for_onnxruntime
from vlkv.export.weights import Progress, link_weights, write_float32
from vlkv.files import link_or_copy, new_directory
from vlkv.manifest import Embedding, Manifest, read, verify, write

BACKENDS = ("onnxruntime",)
FLOAT32_WEIGHTS = "weights.float32.safetensors"
NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Watch:
    """Who is told of progress: `step` the name of each step, `data` the weight bytes read since its last call."""

    step: Report = lambda step: None
    data: Progress = lambda read: None
    total: Progress = lambda size: None


def build_engine(
    source: Path,
    target: Path,
    backend: str = "onnxruntime",
    operators: str = "native",
    watch: Watch = Watch(),
) -> Manifest:
    """Writes the engine directory of a graph directory; `target` appears whole or not at all.

    Args:
        source: what `vlkv export` wrote.
        target: the engine directory to make.
        backend: one of `BACKENDS`.
        operators: `native` has vlkv's own kernels score and evict, `functions` their ONNX bodies.
        watch: told of progress.

    Raises:
        EngineError: `source` is no graph directory or has a missing or changed file, the backend is unknown, or
            `target` exists and is not vlkv's.
    """
    if backend not in BACKENDS:
        raise EngineError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if operators not in ("native", "functions"):
        raise EngineError(f"unknown operators {operators!r}; known: native, functions")
    manifest = read(source)
    if manifest.kind != "graphs":
        raise EngineError(
            f"{source} holds an engine; vlkv build takes a graph directory that vlkv export wrote"
        )
    verify(source, manifest)
    with new_directory(target) as folder:
        models = {name: ir.load(source / f"{name}.onnx") for name in GRAPHS}
        halves = _half_weights(models, manifest)
        converted: dict[str, Tensor] = {}
        if halves:
            watch.step("converting the weights to float32")
            watch.total(sum(tensor.length for tensor in halves.values()))
            kept = {name for name in halves if not _is_weight(models, name)}
            converted = write_float32(source, folder / FLOAT32_WEIGHTS, halves, kept, watch.data)
        watch.step("lowering the graphs")
        lower_for_onnxruntime(models, {n: _external(t) for n, t in converted.items()}, operators)
        for name, model in models.items():
            ir.save(model, folder / f"{name}.onnx")
        table = manifest.embedding
        if converted:
            placed = converted[_TABLE]
            table = Embedding(file=placed.file, offset=placed.offset, dtype=placed.dtype, shape=table.shape)
        link_weights(source, folder, sorted((_weight_files(models) | {table.file}) - {FLOAT32_WEIGHTS}))
        for name in manifest.files:
            if not name.endswith((WEIGHTS, ".onnx")):
                link_or_copy(source / name, folder / name)
        built = msgspec.structs.replace(
            manifest,
            kind="engine",
            backend=backend,
            operators=operators,
            cache_dtype="float32",
            embedding=table,
            versions=manifest.versions | versions("onnxruntime"),
            files=file_facts(folder, hash_weights=True, report=watch.step),
        )
        write(folder, built)
    return built


_TABLE = "text.embed_tokens.weight"


def _is_weight(models: dict[str, ir.Model], name: str) -> bool:
    return any(name in model.graph.initializers for model in models.values())


def _external(tensor: Tensor) -> ir.ExternalTensor:
    dtype = {text: code for code, text in NAMES.items()}[tensor.dtype]
    return ir.ExternalTensor(
        tensor.file, tensor.offset, tensor.length, dtype, shape=ir.Shape(tensor.shape), name=tensor.name
    )


def _half_weights(models: dict[str, ir.Model], manifest: Manifest) -> dict[str, Tensor]:
    """Every weight to write anew if any is 16-bit: all 16-bit initializers, and the embedding table."""
    found: dict[str, Tensor] = {}
    for model in models.values():
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.dtype != ir.DataType.FLOAT:
                shape = tuple(int(size) for size in tensor.shape)
                found[name] = Tensor(
                    name, tensor.location, NAMES[tensor.dtype], shape, tensor.offset, tensor.length
                )
    if found and _TABLE not in found:
        table = manifest.embedding
        size = table.shape[0] * table.shape[1] * (4 if table.dtype == "float32" else 2)
        found[_TABLE] = Tensor(_TABLE, table.file, table.dtype, table.shape, table.offset, size)
    return found


def _weight_files(models: dict[str, ir.Model]) -> set[str]:
    tensors = (value.const_value for model in models.values() for value in model.graph.initializers.values())
    return {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
