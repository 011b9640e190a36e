"""The device interface on host memory: ONNX Runtime runs the lowered graphs as a TensorRT engine would.

It compares the TensorRT backend's own work (what is bound where, which arrays are swapped, what is copied) with the
results of the other backends on a machine without a GPU. Memory starts as garbage, as on a device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from backend.drawing import drawn
from models import onnx_runs
from vlkv.backend.device.arrays import BYTES, DeviceArray, copies
from vlkv.backend.device.backend import DeviceBackend
from vlkv.storage.manifest import DeviceFacts, read
from vlkv_export.targets.spec import GRAPHS
from vlkv_export.targets.tensorrt.lower import lower_for_tensorrt


class HostMemory:
    def __init__(self, size: int) -> None:
        self.bytes = np.full(max(size, 1), 0xFF, np.uint8)
        self.pointer = self.bytes.ctypes.data


class Replay:
    def __init__(self, device, work):
        self._device, self._work = device, work

    def __call__(self):
        self._device.replayed += 1
        self._work()

    def close(self):
        pass


class HostDevice:
    """See `vlkv.backend.device.arrays.Device`."""

    free = 1 << 30
    picks = True
    draws = False

    def __init__(self) -> None:
        self.replayed = 0

    def use(self):
        pass

    def recover(self):
        pass

    def mover(self, keys, values):
        return None

    def pick(self, logits, token, best):
        view(token)[:] = view(logits).argmax(1)
        view(best)[:] = view(logits).max(1)

    def draw(self, logits, choice, token, best):
        view(token)[:], view(best)[:] = drawn(view(logits), view(choice).view(np.float64))

    def close(self):
        pass

    def allocate(self, shape, dtype):
        return DeviceArray(HostMemory(int(np.prod(shape)) * BYTES[dtype]), tuple(shape), dtype)

    def clear(self, array):
        begin = array.offset * array.itemsize
        array.memory.bytes[begin : begin + array.nbytes] = 0

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def copy(self, target, source):
        self._copy(target, target.memory.bytes, source, source.memory.bytes)

    def upload(self, target, source):
        assert source.flags.c_contiguous
        bits = source.reshape(-1).view(np.uint8)
        self._copy(target, target.memory.bytes, DeviceArray(target.memory, source.shape, target.dtype), bits)

    def download(self, target, source):
        assert target.flags.c_contiguous
        bits = target.reshape(-1).view(np.uint8)
        self._copy(DeviceArray(source.memory, target.shape, source.dtype), bits, source, source.memory.bytes)

    def synchronize(self):
        pass

    def replay(self, work):
        return Replay(self, work)

    def _copy(self, target, to, source, start):
        for part in copies(target, source):
            for row in range(part.height):
                first = part.source + row * part.source_pitch
                place = part.target + row * part.target_pitch
                assert 0 <= place <= place + part.width <= len(to)
                to[place : place + part.width] = start[first : first + part.width]


def view(array: DeviceArray) -> np.ndarray:
    """A dense device array as NumPy sees it."""
    begin = array.offset * array.itemsize
    flat = array.memory.bytes[begin : begin + array.nbytes].view(np.dtype(array.dtype))
    return flat.reshape(array.shape)


class HostGraph:
    """See `vlkv.backend.device.arrays.Graph`."""

    def __init__(self, path: Path, in_place: bool) -> None:
        self._session, self._in_place = onnx_runs.session(path), in_place
        self.inputs = {value.name for value in self._session.get_inputs()}
        self.outputs = {value.name for value in self._session.get_outputs()}

    def run(self, inputs, outputs, profile=0):
        assert set(inputs) == self.inputs
        assert set(outputs) == self.outputs
        for name, array in outputs.items():
            if name.startswith(("new_key_cache", "new_value_cache")):
                before = inputs[name.removeprefix("new_")]
                assert (before is array) == self._in_place
        feeds = {n: (a if isinstance(a, np.ndarray) else view(a)).copy() for n, a in inputs.items()}
        found = self._session.run(list(outputs), feeds)
        for array, result in zip(outputs.values(), found, strict=True):
            assert result.shape == array.shape
            view(array)[...] = result

    def bind(self, inputs, outputs, profile=0):
        return Bound(self, inputs, outputs, profile)

    def close(self):
        pass


class Bound:
    """See `vlkv.backend.device.arrays.Bound`."""

    capturable = True

    def __init__(self, graph, *given):
        self._graph, self._given = graph, given

    def __call__(self):
        self._graph.run(*self._given)

    def close(self):
        self._given = ()


def lowered(
    source: Path, folder: Path, operators: str, cache: str, **limits: Any
) -> tuple[dict[str, tuple[Path, Any]], Any]:
    """A graph directory's lowered graphs, by name, and the manifest that an engine of them would have."""
    folder = onnx_runs.copied(source, folder)
    facts = {
        "compute_capabilities": ("8.9",),
        "capacity": 128,
        "batch": 3,
        "chunk": 16,
        "cache": cache,
    } | limits
    device = DeviceFacts(**facts)
    models = {name: ir.load(source / f"{name}.onnx") for name in GRAPHS}
    capacity = device.capacity if cache == "static" else None
    lower_for_tensorrt(models, {}, ir.DataType.FLOAT, operators, capacity, cache == "in-place")
    graphs = {}
    for name, model in models.items():
        path = folder / f"{name}.lowered.onnx"
        ir.save(model, path)
        graphs[name] = (path, model)
    manifest = msgspec.structs.replace(
        read(source),
        kind="engine",
        backend="tensorrt-rtx",
        operators=operators,
        cache_dtype="float32",
        device=device,
    )
    return graphs, manifest


def host_backend(source: Path, folder: Path, operators: str, cache: str, **limits: Any) -> tuple[Any, Any]:
    """The TensorRT backend over a graph directory's lowered graphs, and the manifest that an engine would have."""
    graphs, manifest = lowered(source, folder, operators, cache, **limits)
    opened = {name: HostGraph(path, cache != "dynamic") for name, (path, _) in graphs.items()}
    return DeviceBackend(HostDevice(), opened, manifest), manifest
