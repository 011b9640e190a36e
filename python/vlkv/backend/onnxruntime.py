"""Engines on ONNX Runtime's CPU provider: arrays are bound without copies, and caches are updated in place.

B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads, D head dimension, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vlkv.backend.base import NOTHING, Choice, Observation, ObservedQueries, ObservedScores
from vlkv.backend.cache import Array, Cache, HostStore, Store
from vlkv.backend.registry import Options
from vlkv.dtypes import Float32, Int64
from vlkv.errors import EngineError, ImageError
from vlkv.ops.cores import default_threads
from vlkv.ops.native import native
from vlkv.ops.session_options import session_options
from vlkv.ops.tuned import Tuned, load
from vlkv.storage.files import show, text_path
from vlkv.storage.manifest import Manifest, vision_graphs

CPU = "cpu"
BFLOAT16 = 16
"""ONNX's number of the type."""
RECALL = "recall"
"""The decoder's input that names stores of evicted tokens; engines of earlier versions lack it."""
SHRINK = "memory.enable_memory_arena_shrinkage"


def open_backend(directory: Path, manifest: Manifest, options: Options) -> OnnxRuntimeBackend:
    """Opens the graphs on the CPU: see `vlkv.backend.registry`."""
    if options.plugin is not None:
        raise EngineError(
            f"{show(options.plugin)} is a plugin for TensorRT; {show(directory)} runs on ONNX Runtime"
        )
    if manifest.device is not None:
        raise EngineError(
            f"{show(directory)} computes in {manifest.weights} for GPUs: open it with --device cuda, or build it "
            "without --dtype for CPUs"
        )
    tuned = None
    if options.tuned is not None and manifest.operators == "native":
        tuned = load(options.tuned, directory)
    return OnnxRuntimeBackend(directory, manifest, options.threads or default_threads(), tuned)


class OnnxRuntimeBackend:
    """The sessions of an engine directory.

    Args:
        directory: the verified engine directory.
        manifest: its manifest.
        threads: threads of one operator; 0 leaves the number to ONNX Runtime.
        tuned: operators that run instead of the installed ones.
    """

    chunk = 0
    on_device = False
    notes: Sequence[str] = ()

    def __init__(
        self, directory: Path, manifest: Manifest, threads: int = 0, tuned: Tuned | None = None
    ) -> None:
        self.tuned = tuned
        self._operators = tuned.address if tuned else 0
        self.text = manifest.text
        self.threads = threads
        self.store: Store = HostStore(manifest.cache_dtype)
        self._native = manifest.operators == "native"
        self._vision = {
            name: _session(directory / f"{name}.onnx", threads, manifest.operators, tuned)
            for name in vision_graphs(manifest)
        }
        self._decoder = _session(directory / "decoder.onnx", threads, manifest.operators, tuned)
        self._names_stores = any(value.name == RECALL for value in self._decoder.get_inputs())
        # a tuned library has a list of stores of its own
        self.recalls = self._names_stores and tuned is None
        self._compress = None if self._native else _session(directory / "compress.onnx", threads)
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry(SHRINK, "cpu:0")

    def vision(self, pixels: Float32, graph: str = "vision") -> Float32:
        """See `Backend.vision`; runs one tile at a time, so that memory does not grow with their number."""
        if graph not in self._vision:
            raise ImageError("this engine has no vision graph: its model takes text alone")
        run = self._vision[graph].run
        return np.concatenate(
            [run(None, {"pixel_values": pixels[n : n + 1]}, self._shrink)[0] for n in range(len(pixels))]
        )

    def extend(
        self, embeds: Float32, positions: Int64, cache: Cache, row_index: Int64, last: bool
    ) -> tuple[Float32, Observation]:
        """See `Backend.extend`."""
        names = ("logits", *(self.observed if row_index.shape[1] else ()))
        binding = self.bind(embeds, positions, row_index, cache)
        for name in names:
            binding.bind_output(name, CPU)
        self.run(binding, shrink=last)
        outputs = binding.get_outputs()[-len(names) :]
        cache.length += embeds.shape[1]
        found = {name: value.numpy() for name, value in zip(names, outputs, strict=True)}
        return found["logits"], self.observation(found)

    def evict(
        self,
        source: tuple[Array, Array],
        score: Float32,
        keep: tuple[int, int, int],
        target: tuple[Array, Array],
        per_head: bool,
        merge: bool,
    ) -> NDArray[np.int32]:
        """See `Backend.evict`."""
        count = keep[0]
        length, *kept = (np.array([n], np.int64) for n in (score.shape[2], *keep))
        if self._compress is None:
            positions = np.empty((score.shape[1], count), np.int32)
            native().evict(
                *source,
                score,
                length,
                *kept,
                *target,
                positions[np.newaxis],
                per_head,
                merge,
                False,
                self.threads,
                self._operators,
            )
            return positions
        arrays = (
            *source,
            score,
            length,
            *kept,
            np.array(count, np.int64),
            np.array(per_head),
            np.array(merge),
        )
        names = (value.name for value in self._compress.get_inputs())
        result = self._compress.run(None, dict(zip(names, arrays, strict=True)))
        target[0][:], target[1][:] = result[0], result[1]
        kept_positions: NDArray[np.int32] = result[2][0]
        return kept_positions

    def steps(self, cache: Cache) -> OnnxRuntimeSteps:
        """See `Backend.steps`."""
        return OnnxRuntimeSteps(self, cache)

    def close(self) -> None:
        """See `Backend.close`; the sessions go with the backend."""

    def bind(self, embeds: Float32, positions: Int64, row_index: Int64, cache: Cache) -> Any:
        """Binds the decoder to these inputs and to the cache, which is updated in place."""
        binding = self._decoder.io_binding()
        inputs = {"inputs_embeds": embeds, "position_ids": positions, "row_index": row_index}
        if self._names_stores:
            inputs[RECALL] = cache.recall
        for name, array in (*inputs.items(), ("length", cache.length)):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for kind, arrays in (("key", cache.keys), ("value", cache.values)):
            for layer, array in enumerate(arrays):
                value = _cache_value(array)
                binding.bind_ortvalue_input(f"{kind}_cache.{layer}", value)
                binding.bind_ortvalue_output(f"new_{kind}_cache.{layer}", value)
        return binding

    def run(self, binding: Any, *, shrink: bool = False) -> None:
        """Runs the decoder; `shrink` frees working memory afterwards."""
        self._decoder.run_with_iobinding(binding, self._shrink if shrink else None)

    @property
    def observed(self) -> list[str]:
        """The names of the decoder's observation outputs."""
        layers = range(self.text.layers)
        if self._native:
            return [f"query.{layer}" for layer in layers]
        return [*(f"score.{layer}" for layer in layers), "sparsity"]

    def observation(self, arrays: dict[str, Float32]) -> Observation:
        """The observation in these outputs, by name; `arrays` is empty if nothing was observed."""
        layers = [str(layer) for layer in range(self.text.layers)]
        if "sparsity" in arrays:
            scores = [arrays[f"score.{layer}"] for layer in layers]
            return ObservedScores(scores, arrays["sparsity"], self.text.query_heads)
        queries = [arrays[f"query.{layer}"] for layer in layers if f"query.{layer}" in arrays]
        return ObservedQueries(queries, self._operators) if queries else NOTHING


class OnnxRuntimeSteps:
    """Decoding: arrays are bound once; a step writes two small arrays and reads the logits in place.

    A step that observes uses a second binding, which has observation outputs and is made on first use.

    Attributes:
        logits: the logits `[B,V]` float32 of the last step; the next step overwrites them.
        observation, picked, draws: see `vlkv.backend.base.Steps`.
    """

    picked = None
    draws = False

    def __init__(self, backend: OnnxRuntimeBackend, cache: Cache) -> None:
        self.logits = np.zeros((cache.batch, backend.text.vocab), np.float32)
        self.observation: Observation = NOTHING
        self._backend, self._cache = backend, cache
        self._embeds = np.zeros((cache.batch, 1, backend.text.hidden), np.float32)
        self._positions = np.zeros((cache.batch, 1), np.int64)
        self._rows = np.full((cache.batch, 1), -1, np.int64)
        self._plain = self._binding(self._rows[:, :0])
        self._watching: Any = None

    def step(
        self,
        embeds: Float32,
        positions: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
        choice: Choice | None = None,
    ) -> Float32:
        """See `vlkv.backend.base.Steps.step`; the logits are in the host's memory, so that nothing is picked here."""
        self._embeds[:, 0] = embeds
        self._positions[:, 0] = positions
        binding = self._plain
        if watched is not None:
            self._rows[:, 0] = watched
            self._rows -= 1
            binding = self._watching = self._watching or self._watcher()
        self._backend.run(binding)
        self._cache.length += active
        return self.logits

    def overwrite(self, slots: Int64) -> None:
        """See `vlkv.backend.base.Steps.overwrite`."""
        self._cache.overwrite(slots)

    def close(self) -> None:
        """See `vlkv.backend.base.Steps.close`; bindings go with the loop."""

    def _binding(self, rows: Int64) -> Any:
        binding = self._backend.bind(self._embeds, self._positions, rows, self._cache)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self.logits))
        return binding

    def _watcher(self) -> Any:
        """Binds arrays for the observation, with the cache's sizes."""
        binding, cache, text = self._binding(self._rows), self._cache, self._backend.text
        query = (cache.batch, text.query_heads, 1, text.head_dim)
        arrays = {}
        for name in self._backend.observed:
            kind, _, layer = name.partition(".")
            if kind == "query":
                arrays[name] = np.zeros(query, np.float32)
            elif kind == "score":
                arrays[name] = np.zeros((cache.batch, text.kv_heads, cache.capacity(int(layer))), np.float32)
            else:
                arrays[name] = np.zeros((text.layers, cache.batch), np.float32)
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(arrays[name]))
        self.observation = self._backend.observation(arrays)
        return binding


def _cache_value(array: Array) -> Any:
    """The array's memory as a value of ONNX Runtime, which knows bfloat16."""
    if array.dtype == np.uint16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _session(path: Path, threads: int, operators: str = "functions", tuned: Tuned | None = None) -> Any:
    return open_session(path, session_options(threads, operators, tuned), ["CPUExecutionProvider"])


def open_session(path: Path, options: Any, providers: list[Any]) -> Any:
    """A graph, opened without warnings. Raises `EngineError` if ONNX Runtime refuses it."""
    options.log_severity_level = 3
    name = text_path(path)
    try:
        return ort.InferenceSession(name, options, providers=providers)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise EngineError(f"{path} can't be opened by ONNX Runtime {ort.__version__}: {first}") from None
