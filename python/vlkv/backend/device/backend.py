"""Engines on a device: caches stay in its memory and are bound to the graphs without a copy.

TensorRT and TensorRT for RTX (`tensorrt.py`) or ONNX Runtime's CUDA provider (`onnxruntime_device.py`) run the graphs.

The host sends embeddings and small integers; it receives logits, and scores and sparsity of the observation window.
B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads, Hkv key/value heads, D head dimension,
L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import NOTHING, Observation, ObservedScores
from vlkv.backend.cache import Array, Cache, Store
from vlkv.backend.device.arrays import Device, DeviceArray, Graph, send, to_device, to_host
from vlkv.backend.device.steps import DeviceSteps
from vlkv.dtypes import Float32, Int64
from vlkv.errors import EngineError, PromptError
from vlkv.storage.image_facts import features_of
from vlkv.storage.manifest import DeviceFacts, Manifest

PREFILL, DECODE = 0, 1
"""The decoder's optimization profiles."""


class DeviceStore:
    """Makes a cache's arrays on a device, as large as the engine takes them.

    Attributes:
        sets: how many sets of a cache's arrays are alive while it decodes: two, where each step writes them anew.
    """

    def __init__(self, device: Device, dtype: str, limits: DeviceFacts, in_place: bool) -> None:
        self._device, self._dtype, self._limits = device, dtype, limits
        self.sets = 1 if in_place else 2

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """A zeroed array `[B,Hkv,C,D]`; for a static engine C is the engine's capacity.

        Attention gives empty slots the weight 0, but 0 times uninitialised memory may be NaN; hence the zeros.
        """
        self._device.use()
        batch, heads, slots, dim = shape
        if slots > self._limits.capacity:
            raise PromptError(
                f"prompt and answer take {slots} cache slots, the engine was built for {self._limits.capacity}: "
                "ask for fewer new tokens, or build it with a larger --capacity"
            )
        if batch > self._limits.batch:
            raise PromptError(
                f"{batch} prompts at once, the engine was built for {self._limits.batch}: "
                "ask fewer at once, or build it with a larger --max-batch"
            )
        if self._limits.cache == "static" and slots:
            slots = self._limits.capacity
        array = self._device.allocate((batch, heads, slots, dim), self._dtype)
        self._device.clear(array)
        return array

    def row(self, head_dim: int) -> int:
        """See `Store.row`."""
        return head_dim

    def assign(self, target: Array, source: Array) -> None:
        """Copies one view into another."""
        self._device.use()
        self._device.copy(target, source)


class DeviceBackend:
    """An engine directory's graphs on a device.

    Args:
        device: holds all arrays.
        graphs: by name: `vision`, `video` where there is one, `decoder`, `compress`, `compress_merge`, and `score` of
            an engine without the plugin.
        manifest: the engine's manifest, of an engine for devices.
        notes: what was found out about how the graphs run, for verbose output; more may come while they do.
    """

    threads = 0
    on_device = True
    recalls = False

    def __init__(
        self, device: Device, graphs: Mapping[str, Graph], manifest: Manifest, notes: Sequence[str] = ()
    ) -> None:
        self.notes = notes
        self.device, self.graphs, self.text = device, graphs, manifest.text
        if manifest.device is None:
            raise EngineError("this engine is for CPUs, not for a device's memory")
        self.limits = manifest.device
        self.dtype = manifest.cache_dtype
        self.scores = "score" not in graphs
        self.in_place = self.limits.cache != "dynamic"
        self.chunk = self.limits.chunk
        self.store: Store = DeviceStore(device, self.dtype, self.limits, self.in_place)
        self._image, self._video = manifest.image, manifest.video

    def vision(self, pixels: Float32, graph: str = "vision") -> Float32:
        """See `Backend.vision`; one tile at a time."""
        self.device.use()
        facts = self._video.frame if graph == "video" and self._video is not None else self._image
        rows, found = features_of(facts, *pixels.shape[2:]), []
        for picture in pixels:
            features = self.device.allocate((1, rows, self.text.hidden), "float32")
            given = to_device(self.device, picture[np.newaxis])
            self.graphs[graph].run({"pixel_values": given}, {"image_features": features})
            found.append(features)
        return np.concatenate(to_host(self.device, *found))

    def extend(
        self, embeds: Float32, positions: Int64, cache: Cache, row_index: Int64, last: bool
    ) -> tuple[Float32, Observation]:
        """See `Backend.extend`; at most `chunk` tokens."""
        self.device.use()
        batch, tokens, _ = embeds.shape
        given: dict[str, NDArray[Any]] = {"inputs_embeds": embeds, "position_ids": positions}
        given |= {"row_index": row_index, "length": cache.length}
        inputs = {name: to_device(self.device, array) for name, array in given.items()}
        old, new = (cache.keys, cache.values), self.target(cache)
        outputs = self.outputs(cache, row_index.shape[1])
        profile = PREFILL if batch == 1 else DECODE
        self.graphs["decoder"].run(
            inputs | self.caches(*old), outputs | self.caches(*new, prefix="new_"), profile
        )
        cache.keys, cache.values = new
        rows = np.where(row_index < 0, -1, cache.length[:, :, np.newaxis] + row_index)
        wanted = self.observed(outputs, cache, rows) if row_index.shape[1] else []
        logits, *seen = to_host(self.device, outputs["logits"], *wanted)
        cache.length += tokens
        return logits, self.observation(seen) if seen else NOTHING

    def evict(
        self,
        source: tuple[DeviceArray, DeviceArray],
        score: Float32,
        keep: tuple[int, int, int],
        target: tuple[DeviceArray, DeviceArray],
        per_head: bool,
        merge: bool,
    ) -> NDArray[np.int32]:
        """See `Backend.evict`; both pairs are the first slots of whole arrays, which are bound as they are."""
        self.device.use()
        whole, slots = source[0].root.shape, target[0].root.shape[2]
        padded = self.device.allocate(whole[:3], "float32")
        send(self.device, padded[:, :, : score.shape[2]], np.asarray(score, np.float32))
        position = self.device.allocate((1, whole[1], slots), "int32")
        names = ("length", "keep", "sinks", "recent")
        counts = {
            name: np.array([n], np.int64) for name, n in zip(names, (score.shape[2], *keep), strict=True)
        }
        inputs: dict[str, Any] = {name: to_device(self.device, array) for name, array in counts.items()}
        inputs |= {"key": source[0].root, "value": source[1].root, "score": padded}
        inputs |= {
            "per_head": to_device(self.device, np.array(per_head)),
            "capacity": np.array(slots, np.int64),
        }
        outputs = {"new_key": target[0].root, "new_value": target[1].root, "position": position}
        self.graphs["compress_merge" if merge else "compress"].run(inputs, outputs)
        kept: NDArray[np.int32] = to_host(self.device, position)[0][0, :, : keep[0]].copy()
        return kept

    def steps(self, cache: Cache) -> DeviceSteps:
        """See `Backend.steps`."""
        self.device.use()
        return DeviceSteps(self, cache)

    def target(self, cache: Cache) -> tuple[list[DeviceArray], list[DeviceArray]]:
        """The arrays that a call writes keys and values to: the cache's own if updated in place, else new ones."""
        if self.in_place:
            return cache.keys, cache.values
        keys, values = (
            [self.device.allocate(array.shape, array.dtype) for array in arrays]
            for arrays in (cache.keys, cache.values)
        )
        return keys, values

    def caches(
        self, keys: list[DeviceArray], values: list[DeviceArray], prefix: str = ""
    ) -> dict[str, DeviceArray]:
        """A cache's arrays by the decoder's names for them."""
        named = {f"{prefix}key_cache.{layer}": array for layer, array in enumerate(keys)}
        return named | {f"{prefix}value_cache.{layer}": array for layer, array in enumerate(values)}

    def outputs(self, cache: Cache, rows: int) -> dict[str, DeviceArray]:
        """New arrays for the decoder's outputs other than the caches, with W = `rows`."""
        text, batch = self.text, cache.batch
        made = {"logits": self.device.allocate((batch, text.vocab), "float32")}
        for layer in range(text.layers):
            if self.scores:
                shape = (batch, text.kv_heads, cache.capacity(layer))
                made[f"score.{layer}"] = self.device.allocate(shape, "float32")
            else:
                query = (batch, text.query_heads, rows, text.head_dim)
                made[f"query.{layer}"] = self.device.allocate(query, self.dtype)
        if self.scores:
            made["sparsity"] = self.device.allocate((text.layers, batch), "float32")
        return made

    def observed(self, outputs: Mapping[str, DeviceArray], cache: Cache, rows: Int64) -> list[DeviceArray]:
        """What a call saw, for `observation`: its outputs, or made of its query rows, at slots `rows [L,B,W]`."""
        layers = range(self.text.layers)
        if self.scores:
            return [*(outputs[f"score.{layer}"] for layer in layers), outputs["sparsity"]]
        found = []
        for layer in layers:
            given, made = self.score_arrays(outputs, cache, layer)
            self.graphs["score"].run(given | {"row_position": to_device(self.device, rows[layer])}, made)
            found.append(made)
        return [*(made["score"] for made in found), *(made["sparsity"] for made in found)]

    def score_arrays(
        self, outputs: Mapping[str, DeviceArray], cache: Cache, layer: int
    ) -> tuple[dict[str, DeviceArray], dict[str, DeviceArray]]:
        """Query and keys for the score graph, and fresh arrays for what it gives out."""
        shape = (cache.batch, self.text.kv_heads, cache.capacity(layer))
        score, share = self.device.allocate(shape, "float32"), self.device.allocate(shape[:1], "float32")
        given = {"query": outputs[f"query.{layer}"], "key": cache.keys[layer]}
        return given, {"score": score, "sparsity": share}

    def observation(self, seen: list[Float32]) -> Observation:
        """What was observed, read back."""
        scores, shares = seen[: self.text.layers], seen[self.text.layers :]
        sparsity = shares[0] if self.scores else np.stack(shares)
        return ObservedScores(scores, sparsity, self.text.query_heads)

    def close(self) -> None:
        """See `Backend.close`."""
        # a recording ends with its graph, and not before its last run
        self.device.use()
        self.device.synchronize()
        for graph in self.graphs.values():
            graph.close()
        self.device.close()
