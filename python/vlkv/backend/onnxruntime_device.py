"""ONNX Runtime with caches in a device's memory: graphs are bound to raw pointers.

Unverified on CUDA: no test ran on a GPU. GroupQueryAttention has no float32 kernel there, so ONNX Runtime runs that
node on the CPU and copies its inputs and outputs: correct but slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vlkv.backend.cuda import CudaDevice, compute_capability
from vlkv.backend.device.arrays import Device, DeviceArray, to_device
from vlkv.backend.device.backend import DeviceBackend
from vlkv.backend.registry import Options
from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest, vision_graphs

CUDA = "CUDAExecutionProvider"
NAMES = ("decoder", "compress")


def open_backend(directory: Path, manifest: Manifest, _: Options) -> DeviceBackend:
    """Opens the engine's graphs on ONNX Runtime's CUDA provider.

    Raises:
        EngineError: there is no driver or no CUDA provider, or the engine's operators run on the CPU only.
    """
    if manifest.operators != "functions":
        raise EngineError(
            f"--device cuda needs an engine whose operators are ONNX functions: build {directory} with "
            "--operators functions"
        )
    compute_capability(())
    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"--device cuda needs onnxruntime-gpu in place of onnxruntime {ort.__version__}; pip install 'vlkv[gpu]'"
        )
    device = CudaDevice()
    options = {"device_id": "0", "user_compute_stream": str(int(device.stream))}
    return device_backend(directory, manifest, device, "cuda", [(CUDA, options), "CPUExecutionProvider"])


def device_backend(
    directory: Path, manifest: Manifest, device: Device, kind: str, providers: list[Any]
) -> DeviceBackend:
    """Opens the engine's graphs on a device that ONNX Runtime calls `kind`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        name: ort.InferenceSession(str(directory / f"{name}.onnx"), options, providers=providers)
        for name in (*vision_graphs(manifest), *NAMES)
    }
    graphs = {name: _Graph(session, device, kind) for name, session in sessions.items()}
    for name, merging in (("compress", False), ("compress_merge", True)):
        graphs[name] = _Graph(sessions["compress"], device, kind, {"merge": np.array(merging)})
    return DeviceBackend(device, graphs, manifest, in_place=True)


class _Graph:
    """A session; see `vlkv.backend.device.arrays.Graph`. `always` are constant inputs that callers don't give."""

    def __init__(
        self, session: Any, device: Device, kind: str, always: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self._session, self._device, self._kind, self._always = session, device, kind, dict(always or {})

    def run(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> None:
        """See `Graph.run`."""
        binding = self._session.io_binding()
        alive = []
        for name, array in {**inputs, **self._always}.items():
            there = to_device(self._device, array) if isinstance(array, np.ndarray) else array
            alive.append(there)
            dtype = np.dtype(there.dtype)
            binding.bind_input(name, self._kind, 0, dtype, there.shape, there.pointer)
        for name, made in outputs.items():
            binding.bind_output(name, self._kind, 0, np.dtype(made.dtype), made.shape, made.pointer)
        self._session.run_with_iobinding(binding)
