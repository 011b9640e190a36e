"""Builds TensorRT engines from the graphs of a graph directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from vlkv.errors import EngineError
from vlkv.storage.image_facts import ImageFacts
from vlkv.storage.manifest import Manifest
from vlkv_export.targets.spec import Options, Write
from vlkv_export.targets.tensorrt import process
from vlkv_export.targets.tensorrt.lower import lower_for_tensorrt
from vlkv_export.targets.tensorrt.settings import Resolved, resolve
from vlkv_export.targets.tensorrt.shapes import profiles
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

ENGINE = ".engine"
EMBEDDING = "embedding.safetensors"
CONVERTED = "weights.converted.safetensors"
LOWERED = "lowered"


def prepare(backend: str, options: Options, manifest: Manifest) -> Write:
    """Check the options and the builder, and return the function that writes the engine; see `spec.Prepare`.

    Raises:
        EngineError: an option is outside its range, or the builder is missing or can't build for the target.
    """
    products = {
        "--weights": options.weights,
        "--prompt-precision": options.prompt_precision,
        "--kv-dtype": options.kv_dtype,
    }
    for option, value in products.items():
        if value not in (None, "float32"):
            raise EngineError(f"{option} {value} goes with --backend onnxruntime; for {backend} use --dtype")
    if options.passes is not None:
        raise EngineError(f"--passes goes with --backend onnxruntime on CPUs; {backend} has none to choose")
    # neither the parser's layers nor the plugin's know of windows
    manifest = msgspec.structs.replace(manifest, text=inside_window(manifest.text))
    target = resolve(backend, options.settings, options.operators, manifest)
    lower_only = options.settings.lower_only
    if not lower_only:
        check_builder(target)

    def write(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> dict[str, Any]:
        with widened(source, folder, models, watch) as wide:
            if lower_only:
                return lower_into(wide, folder, models, manifest, target, watch, options.link)
            return build_into(wide, folder, models, manifest, target, watch)

    return write


def check_builder(target: Resolved) -> None:
    """Checks that the builder is installed and can build for the target, before anything is written.

    Raises:
        EngineError: it is not installed, does not support the compute capability, or can't load the plugin.
    """
    known = process.build(target.backend, target.plugin).capabilities
    wanted = target.device.compute_capabilities
    if known and not wanted:
        raise EngineError(f"--backend {target.backend} needs --compute-capability; known: {', '.join(known)}")
    for name in wanted:
        if known and name not in known:
            raise EngineError(
                f"unknown --compute-capability {name!r}; {target.backend} builds for {', '.join(known)}"
            )
        if not known:
            raise EngineError(
                f"--backend {target.backend} builds for this machine's GPU; leave --compute-capability out"
            )


def lower_into(
    source: Path,
    folder: Path,
    models: dict[str, ir.Model],
    manifest: Manifest,
    target: Resolved,
    watch: Watch,
    link: bool = False,
) -> dict[str, Any]:
    """Writes lowered graphs, their weights and the embedding table into `folder`; otherwise like `build_into`."""
    _lowered(source, folder, models, manifest.image, target, watch, link)
    return {"kind": "lowered"} | _facts(source, folder, manifest, target)


def build_into(
    source: Path,
    folder: Path,
    models: dict[str, ir.Model],
    manifest: Manifest,
    target: Resolved,
    watch: Watch,
) -> dict[str, Any]:
    """Writes engines and the embedding table into `folder`.

    Returns:
        The fields of the manifest that differ from the graph directory's.

    Raises:
        EngineError: the builder failed, or a weight is outside the dtype's range.
    """
    lowered = folder / LOWERED
    lowered.mkdir()
    graphs = _lowered(source, lowered, models, manifest.image, target, watch)
    for graph in graphs:
        graph["engine"] = str(folder / f"{graph['name']}{ENGINE}")
    capabilities = target.device.compute_capabilities
    built = process.build(target.backend, target.plugin, capabilities, graphs, watch.step)
    shutil.rmtree(lowered)
    facts = _facts(source, folder, manifest, target)
    return facts | {"kind": "engine", "versions": manifest.versions | {target.backend: built.version}}


def _facts(source: Path, folder: Path, manifest: Manifest, target: Resolved) -> dict[str, Any]:
    """Writes the embedding table; returns the fields of the manifest that do not depend on the builder."""
    table = write_weights(source, folder / EMBEDDING, {TABLE: embedding_table(manifest)}, {TABLE})[TABLE]
    return {
        "backend": target.backend,
        "text": manifest.text,
        "operators": target.operators,
        "cache_dtype": target.dtype,
        "device": target.device,
        "embedding": embedding(table, manifest.embedding.scale),
    }


def _lowered(
    source: Path,
    folder: Path,
    models: dict[str, ir.Model],
    image: ImageFacts,
    target: Resolved,
    watch: Watch,
    link: bool = True,
) -> list[dict[str, Any]]:
    """Writes the lowered graphs and their weights; returns what the builder needs to know of each graph.

    `link` lets weights be hard links: the builder reads them before it ends.
    """
    others = other_weights(models, target.dtype)
    placed = {}
    if others:
        watch.step(f"converting the weights to {target.dtype}")
        watch.total(sum(tensor.length for tensor in others.values()))
        placed = write_weights(source, folder / CONVERTED, others, set(), watch.data, target.dtype)
    watch.step("lowering the graphs")
    capacity = target.device.capacity if target.device.cache == "static" else None
    converted = {name: external(tensor) for name, tensor in placed.items()}
    in_place = target.device.cache == "in-place"
    counts = lower_for_tensorrt(models, converted, DTYPES[target.dtype], target.operators, capacity, in_place)
    if in_place and not counts["decoder"]["attend_in_place"]:
        raise EngineError(
            "--cache in-place: the plugin's layer can't replace this decoder's attention; use --cache dynamic"
        )
    graphs = []
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        ir.save(model, path)
        ranges = profiles(name, model, target.device, image)
        graphs.append({"name": name, "onnx": str(path), "profiles": ranges})
    own = sorted(weight_files(models) - {CONVERTED})
    place_weights({name: source / name for name in own}, folder, watch, link)
    return graphs
