"""Engines on the stand-ins: all of vlkv's device layer, with CUDA's and TensorRT's rules around ONNX Runtime."""

from __future__ import annotations

import ctypes
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backend.cuda_stand_in import OK, StandIn, Work
from backend.drawing import drawn
from backend.host_device import lowered
from backend.tensorrt_stand_in import Module
from vlkv import Engine
from vlkv.backend import tensorrt
from vlkv.backend.registry import Options
from vlkv.model import Model
from vlkv.storage.manifest import write
from vlkv_export.directory import file_facts
from vlkv_export.targets.tensorrt.shapes import profiles


@contextmanager
def installed(driver: StandIn, module: Module | None = None) -> Any:
    """The stand-ins in the places of `cuda.bindings.runtime` and `tensorrt_rtx`."""
    names = {"cuda.bindings.runtime": driver}
    if module is not None:
        names |= {"tensorrt_rtx": module, "tensorrt": module}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, found in before.items():
            if found is None:
                del sys.modules[name]
            else:
                sys.modules[name] = found


def write_engine(source: Path, folder: Path, operators: str, cache: str, **limits: Any) -> Any:
    """An engine directory whose engines the stand-in opens; its manifest."""
    graphs, manifest = lowered(source, folder, operators, cache, **limits)
    for name, (path, model) in graphs.items():
        facts = {"name": name, "onnx": str(path), "cache": cache}
        facts["profiles"] = profiles(name, model, manifest.device, manifest.image)
        (folder / f"{name}.engine").write_text(json.dumps(facts))
    (folder / "plugin.so").touch()
    (folder / "manifest.json").unlink()
    manifest = msgspec.structs.replace(manifest, files=file_facts(folder, hash_weights=True))
    write(folder, manifest)
    return manifest


class Kernels:
    """See `vlkv.backend.kernels.Kernels`: by the definitions of the C++ headers, on the stand-in's memory."""

    draws = True

    def __init__(self, driver: StandIn) -> None:
        self.driver, self.moves, self.picks, self.drawn = driver, 0, 0, 0

    def pick(self, batch, vocab, logits, token, best, stream):
        self.picks += 1

        def run():
            def read(address, kind, count):
                return np.frombuffer((kind * count).from_address(address), np.dtype(kind)) if count else []

            rows = np.reshape(read(logits, ctypes.c_float, batch * vocab), (batch, vocab))
            read(token, ctypes.c_int32, batch)[:] = rows.argmax(1)
            read(best, ctypes.c_float, batch)[:] = rows.max(1)

        touches = [
            (logits, 4 * batch * vocab, "device"),
            (token, 4 * batch, "device"),
            (best, 4 * batch, "device"),
        ]
        assert self.driver.enqueue(stream, "pick", Work(run, touches)) == OK

    def draw(self, batch, vocab, logits, settings, token, best, stream):
        self.drawn += 1

        def run():
            def read(address, kind, *shape):
                memory = (kind * int(np.prod(shape))).from_address(address)
                return np.frombuffer(memory, np.dtype(kind)).reshape(shape)

            found = drawn(
                read(logits, ctypes.c_float, batch, vocab), read(settings, ctypes.c_double, batch, 4)
            )
            read(token, ctypes.c_int32, batch)[:], read(best, ctypes.c_float, batch)[:] = found

        sizes = {logits: 4 * batch * vocab, settings: 32 * batch, token: 4 * batch, best: 4 * batch}
        touches = [(address, size, "device") for address, size in sizes.items()]
        assert self.driver.enqueue(stream, "draw", Work(run, touches)) == OK

    def move_slots(self, sizes, arrays, capacity, slots, last, stream):
        layers, batch, heads, size = sizes
        self.moves += 1

        def read(address, *shape):
            memory = (ctypes.c_int64 * int(np.prod(shape))).from_address(address)
            return np.frombuffer(memory, np.int64).reshape(shape).copy()

        def run():
            places, most = read(arrays, 2 * layers), read(capacity, layers)
            targets, sources = read(slots, layers, batch, heads), read(last, layers, batch)
            for layer, row, head in np.ndindex(layers, batch, heads):
                slot, source = targets[layer, row, head], sources[layer, row]
                if not (0 <= slot < most[layer] and 0 <= source < most[layer]) or slot == source:
                    continue
                for array in (places[layer], places[layers + layer]):
                    begin = int(array) + (row * heads + head) * int(most[layer]) * size
                    target = begin + int(slot) * size
                    assert self.driver.touch(target, size, "move_slots", running=True)
                    ctypes.memmove(target, begin + int(source) * size, size)

        touches = [(arrays, 16 * layers, "device"), (capacity, 8 * layers, "device")]
        touches += [(slots, 8 * layers * batch * heads, "device"), (last, 8 * layers * batch, "device")]
        assert self.driver.enqueue(stream, "move_slots", Work(run, touches)) == OK


def open_engine(
    folder: Path,
    manifest: Any,
    driver: StandIn,
    rtx: bool = True,
    index: int = 0,
    kernels: Kernels | None = None,
) -> Engine:
    """Opens it as `Engine.load` would."""
    module = Module(driver, rtx)
    plugin = folder / "plugin.so"
    with installed(driver, module):
        backend: Any = tensorrt.open_backend(folder, manifest, Options(plugin=plugin, index=index))
    backend.device._kernels = kernels
    return Engine(folder, Model.of(folder, manifest, backend))
