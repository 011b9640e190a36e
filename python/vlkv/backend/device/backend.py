"""Engines on a device: caches stay in its memory and are bound to the graphs without a copy.

TensorRT and TensorRT for RTX (`tensorrt.py`) or ONNX Runtime's CUDA provider (`onnxruntime_device.py`) run the graphs.

The host sends embeddings and small integers; it receives logits, and scores and sparsity of the observation window.
B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads, Hkv key/value heads, D head dimension,
L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import NOTHING, Observation, ObservedScores
from vlkv.backend.cache import Array, Cache, Store
from vlkv.backend.device.arrays import Device, DeviceArray, Graph, to_device, to_host
from vlkv.dtypes import Float32, Int64
from vlkv.errors import PromptError
from vlkv.storage.image_facts import features_of
from vlkv.storage.manifest import DeviceFacts, Manifest

PREFILL, DECODE = 0, 1
"""The decoder's optimization profiles."""
DEVICE_BATCH, DEVICE_CHUNK = 1024, 1024
"""The most prompts, and the most prompt tokens per call, of an engine that was built without limits."""


class DeviceStore:
    """Allocates a cache's arrays on a device, with the sizes that the engine requires."""

    def __init__(self, device: Device, dtype: str, limits: DeviceFacts) -> None:
        self._device, self._dtype, self._limits = device, dtype, limits

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """A zeroed array `[B,Hkv,C,D]`; for a static engine C is the engine's capacity.

        Attention gives empty slots the weight 0, but 0 times uninitialised memory may be NaN; hence the zeros.
        """
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

    def assign(self, target: Array, source: Array) -> None:
        """Copies one view into another."""
        self._device.copy(target, source)


class DeviceBackend:
    """An engine directory's graphs on a device.

    Args:
        device: holds all arrays.
        graphs: by name: `vision`, `video` where there is one, `decoder`, `compress`, `compress_merge`, and `score` of
            an engine without the plugin.
        manifest: the engine's manifest.
        in_place: whether a call updates caches in place; None takes what the engine was built for.
    """

    threads = 0

    def __init__(
        self, device: Device, graphs: Mapping[str, Graph], manifest: Manifest, in_place: bool | None = None
    ) -> None:
        self.device, self.graphs, self.text = device, graphs, manifest.text
        self.limits = manifest.device or DeviceFacts(
            compute_capabilities=(),
            capacity=self.text.max_positions,
            batch=DEVICE_BATCH,
            chunk=DEVICE_CHUNK,
            cache="dynamic",
        )
        self.dtype = manifest.cache_dtype
        self.scores = "score" not in graphs
        self.in_place = self.limits.cache != "dynamic" if in_place is None else in_place
        self.chunk = self.limits.chunk
        self.store: Store = DeviceStore(device, self.dtype, self.limits)
        self._image, self._video = manifest.image, manifest.video

    def vision(self, pixels: Float32, graph: str = "vision") -> Float32:
        """See `Backend.vision`; one tile at a time."""
        facts = self._video.frame if graph == "video" and self._video is not None else self._image
        rows, found = features_of(facts, *pixels.shape[2:]), []
        for picture in pixels:
            features = self.device.allocate((1, rows, self.text.hidden), "float32")
            given = to_device(self.device, picture[np.newaxis])
            self.graphs[graph].run({"pixel_values": given}, {"image_features": features})
            found.append(to_host(self.device, features))
        return np.concatenate(found)

    def extend(
        self, embeds: Float32, positions: Int64, cache: Cache, row_index: Int64, last: bool
    ) -> tuple[Float32, Observation]:
        """See `Backend.extend`; at most `chunk` tokens."""
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
        logits = to_host(self.device, outputs["logits"])
        rows = np.where(row_index < 0, -1, cache.length[:, :, np.newaxis] + row_index)
        seen = self.observed(outputs, cache, rows) if row_index.shape[1] else NOTHING
        cache.length += tokens
        return logits, seen

    def evict(
        self,
        source: tuple[DeviceArray, DeviceArray],
        score: Float32,
        keep: tuple[int, int, int],
        target: tuple[DeviceArray, DeviceArray],
        per_head: bool,
        merge: bool,
    ) -> NDArray[np.int32]:
        """See `Backend.evict`; both pairs are the first slots of whole arrays, and the whole arrays are bound."""
        whole, slots = source[0].root.shape, target[0].root.shape[2]
        padded = self.device.allocate(whole[:3], "float32")
        dense = np.ascontiguousarray(score, np.float32)
        self.device.upload(padded[:, :, : score.shape[2]], dense)
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
        kept: NDArray[np.int32] = to_host(self.device, position)[0, :, : keep[0]]
        return kept

    def steps(self, cache: Cache) -> DeviceSteps:
        """See `Backend.steps`."""
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

    def observed(self, outputs: Mapping[str, DeviceArray], cache: Cache, rows: Int64) -> Observation:
        """A call's observation: read from its outputs, or computed from its query rows, at slots `rows [L,B,W]`."""
        layers = range(self.text.layers)
        if self.scores:
            scores = [to_host(self.device, outputs[f"score.{layer}"]) for layer in layers]
            return ObservedScores(scores, to_host(self.device, outputs["sparsity"]), self.text.query_heads)
        scores, sparsity = [], []
        for layer in layers:
            score = self.device.allocate((cache.batch, self.text.kv_heads, cache.capacity(layer)), "float32")
            share = self.device.allocate((cache.batch,), "float32")
            inputs = {"query": outputs[f"query.{layer}"], "key": cache.keys[layer]}
            inputs["row_position"] = to_device(self.device, rows[layer])
            self.graphs["score"].run(inputs, {"score": score, "sparsity": share})
            scores.append(to_host(self.device, score))
            sparsity.append(to_host(self.device, share))
        return ObservedScores(scores, np.stack(sparsity), self.text.query_heads)


class DeviceSteps:
    """Single-token steps over one cache. Arrays are bound once, and steps that observe nothing are replayed.

    Static caches are updated in place. With dynamic caches each step reads one of two sets of arrays and writes the
    other; the cache holds the set that was written last.

    Attributes:
        logits: the logits `[B,V]` float32 of the last step, in pinned memory; the next step overwrites them.
        observation: the observation of the last step that observed.
    """

    def __init__(self, backend: DeviceBackend, cache: Cache) -> None:
        self._backend, self._cache, device, text = backend, cache, backend.device, backend.text
        batch = cache.batch
        self.logits: Float32 = device.pinned((batch, text.vocab), "float32")
        self.observation: Observation = NOTHING
        sizes = {
            "inputs_embeds": ((batch, 1, text.hidden), "float32"),
            "position_ids": ((batch, 1), "int64"),
            "length": ((text.layers, batch), "int64"),
        }
        self._host = {name: device.pinned(*size) for name, size in sizes.items()}
        self._given = {name: device.allocate(*size) for name, size in sizes.items()}
        self._no_rows = device.allocate((batch, 0), "int64")
        self._outputs = backend.outputs(cache, 0)
        self._sets = [(cache.keys, cache.values), backend.target(cache)]
        self._now = 0
        self._plain = [device.replay(partial(self._run, now)) for now in (0, 1)]

    def step(
        self,
        embeds: Float32,
        positions: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
    ) -> Float32:
        """See `vlkv.backend.base.Steps.step`; `watched [B]` marks prompts whose token is observed."""
        self._host["inputs_embeds"][:, 0] = embeds
        self._host["position_ids"][:, 0] = positions
        self._host["length"][:] = self._cache.length
        if watched is None:
            self._plain[self._now]()
            self._turn()
        else:
            self._watch(np.where(watched, 0, -1)[:, np.newaxis].astype(np.int64))
        self._backend.device.synchronize()
        self._cache.length += active
        return self.logits

    def overwrite(self, slots: Int64) -> None:
        """See `vlkv.backend.base.Steps.overwrite`."""
        self._cache.overwrite(slots)

    def _turn(self) -> None:
        self._now = 0 if self._backend.in_place else 1 - self._now
        self._cache.keys, self._cache.values = self._sets[self._now]

    def _run(self, now: int) -> None:
        self._enqueue(now, self._no_rows, self._outputs)

    def _enqueue(self, now: int, rows: DeviceArray, outputs: dict[str, DeviceArray]) -> None:
        backend, device = self._backend, self._backend.device
        for name, array in self._given.items():
            device.upload(array, self._host[name])
        inputs = self._given | {"row_index": rows} | backend.caches(*self._sets[now])
        made = outputs | backend.caches(*self._sets[now if backend.in_place else 1 - now], prefix="new_")
        backend.graphs["decoder"].run(inputs, made, DECODE)
        device.download(self.logits, outputs["logits"])

    def _watch(self, rows: Int64) -> None:
        backend, cache = self._backend, self._cache
        index = backend.device.allocate(rows.shape, "int64")
        backend.device.upload(index, rows)
        outputs = backend.outputs(cache, 1)
        self._enqueue(self._now, index, outputs)
        self._turn()
        places = np.where(rows < 0, -1, cache.length[:, :, np.newaxis] + rows)
        self.observation = backend.observed(outputs, cache, places)
