"""ONNX Runtime with caches in a device's memory: graphs are bound to raw pointers.

Attention, scores and eviction are vlkv's operators of the CUDA provider, or `GroupQueryAttention` and ONNX bodies.
Unverified on CUDA: no test ran on a GPU.
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
from vlkv.backend.device.arrays import Device, DeviceArray
from vlkv.backend.device.backend import DeviceBackend
from vlkv.backend.onnxruntime import BFLOAT16, open_session
from vlkv.backend.registry import Options
from vlkv.errors import EngineError
from vlkv.ops.native import native
from vlkv.storage.manifest import Manifest

CUDA = "CUDAExecutionProvider"
ONNX_TYPES = {"bfloat16": BFLOAT16}
"""ONNX's numbers of the types that NumPy does not have."""


def open_backend(directory: Path, manifest: Manifest, options: Options) -> DeviceBackend:
    """The engine's graphs on ONNX Runtime's CUDA provider.

    Raises:
        EngineError: there is no driver or no CUDA provider, the engine is for CPUs, or its operators need kernels that
            this installation was built without.
    """
    if manifest.device is None:
        raise EngineError(
            f"--device cuda needs an engine of 16 bits, as attention there has no float32: build {directory} with "
            "--dtype float16 or bfloat16"
        )
    compute_capability((), options.index)
    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"--device cuda needs onnxruntime-gpu in place of onnxruntime {ort.__version__}; pip install 'vlkv[gpu]'"
        )
    own = kernels.find()
    library = Path(str(native().__file__)) if manifest.operators == "native" else None
    if library is not None and own is None:
        raise EngineError(
            "this vlkv was built without CUDA kernels, which the engine's operators need: install it with "
            "-C cmake.define.VLKV_CUDA=ON, or build the engine with --operators functions"
        )
    device = CudaDevice(options.index, own)
    settings = {"device_id": str(options.index), "user_compute_stream": str(int(device.stream))}
    providers = [(CUDA, settings), "CPUExecutionProvider"]
    return device_backend(directory, manifest, device, "cuda", providers, options.index, library)


def device_backend(
    directory: Path,
    manifest: Manifest,
    device: Device,
    kind: str,
    providers: list[Any],
    index: int = 0,
    library: Path | None = None,
) -> DeviceBackend:
    """The engine's graphs on the device number `index` of those that ONNX Runtime calls `kind`.

    Args:
        directory: the verified engine directory.
        manifest: its manifest.
        device: holds the arrays.
        kind: `cuda`, or `cpu` for a device in the host's memory.
        providers: ONNX Runtime's, the first of which has to be there.
        index: the number.
        library: registers vlkv's operators, where the engine uses them.

    Raises:
        EngineError: ONNX Runtime opened a graph without the first of the providers, as it does where a library of
            that provider is missing. It would take the device's addresses for the host's.
    """
    options = ort.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    where, graphs = (kind, index), {}
    for path in sorted(directory.glob("*.onnx")):
        session = open_session(path, options, providers)
        found = session.get_providers()
        if wanted not in found:
            device.close()
            raise EngineError(
                f"ONNX Runtime {ort.__version__} opened {path.name} with {', '.join(found)}, not {wanted}: "
                "a library that it needs is missing; pip install 'vlkv[gpu]' brings CUDA's and cuDNN's"
            )
        graphs[path.stem] = _Graph(session, device, where)
    return DeviceBackend(device, graphs, manifest)


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
    """A session; see `vlkv.backend.device.arrays.Graph`. Inputs in the host's memory stay there."""

    def __init__(self, session: Any, device: Device, where: tuple[str, int]) -> None:
        self._session, self._device, self._where = session, device, where

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
        for name, array in inputs.items():
            if isinstance(array, np.ndarray):
                binding.bind_cpu_input(name, array)
            else:
                binding.bind_input(name, *self._where, _type(array), array.shape, array.pointer)
        for name, made in outputs.items():
            binding.bind_output(name, *self._where, _type(made), made.shape, made.pointer)
        return _Bound(self._session, binding, (dict(inputs), dict(outputs)))

    def close(self) -> None:
        """See `Graph.close`."""
        self._session = None


def _type(array: DeviceArray) -> Any:
    """The element type as ONNX Runtime takes it: NumPy's, or ONNX's number."""
    return ONNX_TYPES.get(array.dtype) or np.dtype(array.dtype)
