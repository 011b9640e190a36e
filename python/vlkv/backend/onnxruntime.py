"""Engines on ONNX Runtime's CPU provider: arrays are bound, never copied, and caches are updated in place.

B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads, D head dimension, L layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vlkv.backend.base import Floats, Ints, Observation
from vlkv.cache import HOST, Cache, Store
from vlkv.errors import EngineError
from vlkv.manifest import Manifest
from vlkv.native import native

CPU = "cpu"
SHRINK = "memory.enable_memory_arena_shrinkage"


class OnnxRuntimeBackend:
    """The sessions of an engine directory.

    Args:
        directory: the engine directory, verified.
        manifest: its manifest.
        threads: threads of one operator; 0 leaves the number to ONNX Runtime.
    """

    store: Store = HOST
    chunk = 0

    def __init__(self, directory: Path, manifest: Manifest, threads: int = 0) -> None:
        self.text = manifest.text
        self.threads = threads
        self._native = manifest.operators == "native"
        self._vision = _session(directory / "vision.onnx", threads)
        self._decoder = _session(directory / "decoder.onnx", threads)
        self._compress = None if self._native else _session(directory / "compress.onnx", threads)
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry(SHRINK, "cpu:0")

    def vision(self, pixels: Floats) -> Floats:
        """See `Backend.vision`; one picture at a time, so that memory does not grow with their number."""
        run = self._vision.run
        return np.concatenate(
            [run(None, {"pixel_values": pixels[n : n + 1]}, self._shrink)[0] for n in range(len(pixels))]
        )

    def extend(
        self, embeds: Floats, positions: Ints, cache: Cache, row_index: Ints, last: bool
    ) -> tuple[Floats, Observation]:
        """See `Backend.extend`."""
        binding = self._decoder.io_binding()
        _bind_input(binding, "inputs_embeds", embeds)
        _bind_input(binding, "position_ids", positions)
        _bind_input(binding, "row_index", row_index)
        _bind_input(binding, "length", cache.length)
        observed = self._observed_names() if row_index.shape[1] else []
        names = ("logits", *observed)
        for name in names:
            binding.bind_output(name, CPU)
        self._bind_cache(binding, cache)
        self._decoder.run_with_iobinding(binding, self._shrink if last else None)
        outputs = binding.get_outputs()[: len(names)]
        cache.length += embeds.shape[1]
        arrays = {name: value.numpy() for name, value in zip(names, outputs, strict=True)}
        layers = range(self.text.layers)
        if not observed:
            seen = Observation([], [], None)
        elif self._native:
            seen = Observation([arrays[f"query.{layer}"] for layer in layers], [], None)
        else:
            seen = Observation([], [arrays[f"score.{layer}"] for layer in layers], arrays["sparsity"])
        return arrays["logits"], seen

    def evict(
        self,
        source: tuple[Floats, Floats],
        score: Floats,
        keep: tuple[int, int, int],
        target: tuple[Floats, Floats],
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

    def steps(self, cache: Cache) -> Steps:
        """See `Backend.steps`."""
        return Steps(self._decoder, self._bind_cache, cache, self.text.hidden, self.text.vocab)

    def _observed_names(self) -> list[str]:
        layers = range(self.text.layers)
        if self._native:
            return [f"query.{layer}" for layer in layers]
        return [*(f"score.{layer}" for layer in layers), "sparsity"]

    @staticmethod
    def _bind_cache(binding: Any, cache: Cache) -> None:
        for kind, arrays in (("key", cache.keys), ("value", cache.values)):
            for layer, array in enumerate(arrays):
                value = ort.OrtValue.ortvalue_from_numpy(array)
                binding.bind_ortvalue_input(f"{kind}_cache.{layer}", value)
                binding.bind_ortvalue_output(f"new_{kind}_cache.{layer}", value)


class Steps:
    """Decoding: everything is bound once, a step writes two small arrays and reads the logits where they appear.

    Attributes:
        logits: `[B,V]` float32 of the last step; the next step overwrites it.
    """

    def __init__(self, session: Any, bind_cache: Any, cache: Cache, hidden: int, vocab: int) -> None:
        batch = cache.batch
        self.logits = np.zeros((batch, vocab), np.float32)
        self._session, self._cache = session, cache
        self._embeds = np.zeros((batch, 1, hidden), np.float32)
        self._positions = np.zeros((batch, 1), np.int64)
        self._no_rows = np.zeros((batch, 0), np.int64)
        self._binding = session.io_binding()
        _bind_input(self._binding, "inputs_embeds", self._embeds)
        _bind_input(self._binding, "position_ids", self._positions)
        _bind_input(self._binding, "row_index", self._no_rows)
        _bind_input(self._binding, "length", cache.length)
        bind_cache(self._binding, cache)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self.logits))

    def step(self, embeds: Floats, positions: Ints, active: NDArray[np.bool_]) -> Floats:
        """See `vlkv.backend.base.Steps.step`."""
        self._embeds[:, 0] = embeds
        self._positions[:, 0] = positions
        self._session.run_with_iobinding(self._binding)
        self._cache.length += active
        return self.logits


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))


def _session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise EngineError(f"{path} can't be opened by ONNX Runtime {ort.__version__}: {first}") from None
