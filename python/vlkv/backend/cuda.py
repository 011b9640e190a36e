"""CUDA memory and streams, through `cuda.bindings`, which only this module imports. Unverified: never run on a GPU."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.device.arrays import DeviceArray, copies
from vlkv.errors import EngineError
from vlkv.storage.manifest import BYTES

NON_BLOCKING = 1


def runtime() -> Any:
    """CUDA's runtime API. Raises `EngineError` if the package is missing."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineError(
            f"a GPU engine needs the package cuda-bindings ({error}); pip install 'vlkv[tensorrt]'"
        ) from None


def check(result: tuple[Any, ...]) -> Any:
    """Returns a CUDA call's results without its status. Raises `EngineError`, which names the status, on failure."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA failed: {status.name}")
    return values[0] if len(values) == 1 else values


def compute_capability(needed: tuple[str, ...]) -> str:
    """The compute capability of the machine's GPU, such as "8.9", if an engine for `needed` runs on it (empty: on any).

    Raises:
        EngineError: there is no driver or no GPU, or the engine was built for other GPUs.
    """
    cuda = runtime()
    wanted = (
        f"this engine needs a GPU of compute capability {' or '.join(needed)}"
        if needed
        else "this engine needs a GPU"
    )
    status, count = cuda.cudaGetDeviceCount()
    if int(status) != 0 or not count:
        reason = f"no NVIDIA driver ({status.name})" if int(status) != 0 else "no NVIDIA GPU"
        raise EngineError(f"{reason}: {wanted}")
    facts = check(cuda.cudaGetDeviceProperties(check(cuda.cudaGetDevice())))
    found = f"{facts.major}.{facts.minor}"
    if needed and found not in needed:
        raise EngineError(f"this machine's GPU has compute capability {found}: {wanted}")
    return found


class _CudaMemory:
    """Device memory, freed in stream order when the last view is gone."""

    def __init__(self, cuda: Any, size: int, stream: Any) -> None:
        self.pointer = int(check(cuda.cudaMallocAsync(max(size, 1), stream)))
        weakref.finalize(self, cuda.cudaFreeAsync, self.pointer, stream).atexit = False


class CudaDevice:
    """The current GPU with a stream of its own; see `vlkv.backend.device.arrays.Device`."""

    def __init__(self) -> None:
        self._cuda = cuda = runtime()
        self.stream = check(cuda.cudaStreamCreateWithFlags(NON_BLOCKING))
        kinds = cuda.cudaMemcpyKind
        self._kinds = (
            kinds.cudaMemcpyDeviceToDevice,
            kinds.cudaMemcpyHostToDevice,
            kinds.cudaMemcpyDeviceToHost,
        )

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Device.allocate`."""
        return DeviceArray(
            _CudaMemory(self._cuda, prod(shape) * BYTES[dtype], self.stream), tuple(shape), dtype
        )

    def clear(self, array: DeviceArray) -> None:
        """See `Device.clear`."""
        check(self._cuda.cudaMemsetAsync(array.pointer, 0, array.nbytes, self.stream))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """See `Device.pinned`."""
        size = max(prod(shape) * BYTES[dtype], 1)
        pointer = int(check(self._cuda.cudaMallocHost(size)))
        buffer = (ctypes.c_byte * size).from_address(pointer)
        weakref.finalize(buffer, self._cuda.cudaFreeHost, pointer).atexit = False
        array: NDArray[Any] = np.frombuffer(memoryview(buffer), np.dtype(dtype), prod(shape))
        return array.reshape(shape)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """See `Device.copy`."""
        self._copy(target, target.memory.pointer, source, source.memory.pointer, 0)

    def upload(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """See `Device.upload`."""
        dense = DeviceArray(target.memory, source.shape, target.dtype)
        self._copy(target, target.memory.pointer, dense, source.ctypes.data, 1)

    def download(self, target: NDArray[Any], source: DeviceArray) -> None:
        """See `Device.download`."""
        dense = DeviceArray(source.memory, target.shape, source.dtype)
        self._copy(dense, target.ctypes.data, source, source.memory.pointer, 2)

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        check(self._cuda.cudaStreamSynchronize(self.stream))

    def replay(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device.replay`: a CUDA graph, recorded the second time."""
        return _Replay(self._cuda, self.stream, work)

    def _copy(self, target: DeviceArray, to: int, source: DeviceArray, start: int, kind: int) -> None:
        for part in copies(target, source):
            places = (to + part.target, part.target_pitch, start + part.source, part.source_pitch)
            check(
                self._cuda.cudaMemcpy2DAsync(*places, part.width, part.height, self._kinds[kind], self.stream)
            )


class _Replay:
    """Enqueues work directly the first time, as TensorRT may compile and allocate; records it once, then launches that.

    Work that can't be recorded is always enqueued directly.
    """

    def __init__(self, cuda: Any, stream: Any, work: Callable[[], None]) -> None:
        self._cuda, self._stream, self._work = cuda, stream, work
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        self._calls += 1
        if self._calls == 2:
            self._graph = self._record()
        if self._graph is None:
            self._work()
        else:
            check(self._cuda.cudaGraphLaunch(self._graph, self._stream))

    def _record(self) -> Any:
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cuda.cudaStreamBeginCapture(self._stream, mode))
        failed = False
        try:
            self._work()
        except EngineError:
            failed = True
        status, graph = cuda.cudaStreamEndCapture(self._stream)
        if failed or int(status) != 0:
            return None
        executable = check(cuda.cudaGraphInstantiate(graph, 0))
        check(cuda.cudaGraphDestroy(graph))
        weakref.finalize(self, cuda.cudaGraphExecDestroy, executable).atexit = False
        return executable
