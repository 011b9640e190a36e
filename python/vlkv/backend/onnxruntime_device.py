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

from vlkv.backend import kernels
from vlkv.backend.cuda import CudaDevice, compute_capability
from vlkv.backend.device.arrays import Device, DeviceArray, to_device
from vlkv.backend.device.backend import DeviceBackend
from vlkv.backend.registry import Options
from vlkv.errors import EngineError
from vlkv.storage.files import text_path
from vlkv.storage.manifest import Manifest, vision_graphs

CUDA = "CUDAExecutionProvider"
NAMES = ("decoder", "compress")


def open_backend(directory: Path, manifest: Manifest, options: Options) -> DeviceBackend:
    """The engine's graphs on ONNX Runtime's CUDA provider.

    Raises:
        EngineError: there is no driver or no CUDA provider, or the engine's operators run on the CPU only.
    """
    if manifest.operators != "functions":
        raise EngineError(
            f"--device cuda needs an engine whose operators are ONNX functions: build {directory} with "
            "--operators functions"
        )
    compute_capability((), options.index)
    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"--device cuda needs onnxruntime-gpu in place of onnxruntime {ort.__version__}; pip install 'vlkv[gpu]'"
        )
    device = CudaDevice(options.index, kernels.find())
    settings = {"device_id": str(options.index), "user_compute_stream": str(int(device.stream))}
    return device_backend(
        directory, manifest, device, "cuda", [(CUDA, settings), "CPUExecutionProvider"], options.index
    )


def device_backend(
    directory: Path, manifest: Manifest, device: Device, kind: str, providers: list[Any], index: int = 0
) -> DeviceBackend:
    """The engine's graphs on the device number `index` of those that ONNX Runtime calls `kind`.

    Raises:
        EngineError: ONNX Runtime opened a graph without the first of the providers, as it does where a library of
            that provider is missing. It would take the device's addresses for the host's.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    sessions = {}
    for name in (*vision_graphs(manifest), *NAMES):
        session = ort.InferenceSession(text_path(directory / f"{name}.onnx"), options, providers=providers)
        found = session.get_providers()
        if wanted not in found:
            device.close()
            raise EngineError(
                f"ONNX Runtime {ort.__version__} opened {name}.onnx with {', '.join(found)}, not {wanted}: "
                "a library that it needs is missing; pip install 'vlkv[gpu]' brings CUDA's and cuDNN's"
            )
        sessions[name] = session
    where = (kind, index)
    graphs = {name: _Graph(session, device, where) for name, session in sessions.items()}
    for name, merging in (("compress", False), ("compress_merge", True)):
        graphs[name] = _Graph(sessions["compress"], device, where, {"merge": np.array(merging)})
    return DeviceBackend(device, graphs, manifest, in_place=True)


class _Bound:
    """A binding; see `vlkv.backend.device.arrays.Bound`.

    It is not recorded: nodes that ONNX Runtime runs on the CPU wait for the stream.
    """

    capturable = False

    def __init__(self, session: Any, binding: Any, alive: object) -> None:
        self._session, self._binding, self._alive = session, binding, alive
        self._options = ort.RunOptions()
        # the stream keeps the order; only who reads on the host waits
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime can't run a graph on the device: {first}") from None

    def close(self) -> None:
        """See `Bound.close`."""
        self._binding = self._alive = None


class _Graph:
    """A session; see `vlkv.backend.device.arrays.Graph`. `always` are constant inputs that callers don't give."""

    def __init__(
        self,
        session: Any,
        device: Device,
        where: tuple[str, int],
        always: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._session, self._device, self._where, self._always = session, device, where, dict(always or {})

    def run(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> None:
        """See `Graph.run`."""
        self.bind(inputs, outputs, profile)()

    def bind(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> _Bound:
        """See `Graph.bind`."""
        binding = self._session.io_binding()
        alive = []
        for name, array in {**inputs, **self._always}.items():
            there = to_device(self._device, array) if isinstance(array, np.ndarray) else array
            alive.append(there)
            dtype = np.dtype(there.dtype)
            binding.bind_input(name, *self._where, dtype, there.shape, there.pointer)
        for name, made in outputs.items():
            binding.bind_output(name, *self._where, np.dtype(made.dtype), made.shape, made.pointer)
        return _Bound(self._session, binding, (alive, dict(outputs)))

    def close(self) -> None:
        """See `Graph.close`."""
        self._session = None
