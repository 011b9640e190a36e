"""The registry of backends: one line for each; a module is imported when an engine needs it.

A module in this table has `open_backend(directory, manifest, options) -> Backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlkv.backend.base import Backend
from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest

OWN = ""
"""The device of a backend with only one: it is used whatever device is requested."""

BACKENDS = {
    ("onnxruntime", "cpu"): "vlkv.backend.onnxruntime",
    ("onnxruntime", "cuda"): "vlkv.backend.onnxruntime_device",
    ("tensorrt", OWN): "vlkv.backend.tensorrt",
    ("tensorrt-rtx", OWN): "vlkv.backend.tensorrt",
}
"""Modules by the manifest's backend and the requested device."""


@dataclass(frozen=True)
class Options:
    """Options for opening an engine.

    Fields:
        threads: threads of one operator; 0 for all cores.
        plugin: `libvlkv_tensorrt.so`, for a TensorRT engine that was built with it.
        index: the number of the GPU, from 0.
        tuned: a folder of `vlkv tune ENGINE`, for an ONNX Runtime engine on the CPU.
    """

    threads: int = 0
    plugin: Path | None = None
    index: int = 0
    tuned: Path | None = None


def parse_device(text: str) -> tuple[str, int]:
    """A device's name and number, as in `cuda:1`; without a number the first.

    Raises:
        EngineError: no such device, or no such number.
    """
    name, colon, number = text.partition(":")
    check_device(name)
    if not colon:
        return name, 0
    if name == "cpu" or not (number.isdecimal() and len(number) < 4):
        raise EngineError(f"unknown device {text!r}; cpu, cuda and cuda:1 are such")
    return name, int(number)


def check_device(device: str) -> None:
    """Raises `EngineError`, which lists the known devices, for a device that no backend has."""
    known = sorted({name for _, name in BACKENDS} - {OWN})
    if device not in known:
        raise EngineError(f"unknown device {device!r}; known: {', '.join(known)}")


def open_backend(directory: Path, manifest: Manifest, device: str, options: Options) -> Backend:
    """Opens the graphs of a verified engine directory.

    Raises:
        EngineError: the backend or device is unknown, or the backend can't open the engine.
    """
    check_device(device)
    for key in ((manifest.backend, device), (manifest.backend, OWN)):
        if key in BACKENDS:
            backend: Backend = import_module(BACKENDS[key]).open_backend(directory, manifest, options)
            return backend
    devices = [name for backend, name in BACKENDS if backend == manifest.backend]
    if devices:
        raise EngineError(
            f"backend {manifest.backend!r} has no device {device!r}; known: {', '.join(devices)}"
        )
    known = ", ".join(sorted({backend for backend, _ in BACKENDS}))
    raise EngineError(f"{directory}: unknown backend {manifest.backend!r}; known: {known}")
