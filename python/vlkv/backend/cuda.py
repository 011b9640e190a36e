"""CUDA's memory and stream, through `cuda.bindings`, which is imported here only. Unverified: no test ran on a GPU.

`tests/backend/cuda_stand_in.py` stands in for the driver, and holds this module to the rules that the driver has.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.device.arrays import DeviceArray, copies, to_device
from vlkv.backend.kernels import Kernels
from vlkv.dtypes import Int64
from vlkv.errors import EngineError
from vlkv.storage.manifest import BYTES

NON_BLOCKING = 1
KEEP = 2**64 - 1
"""Bytes that the driver's pool keeps when they are freed: all, so that freeing and allocating call no one."""
MOST_PITCH = 2**31 - 1
"""Bytes from one row to the next that a copy of rows may have."""
PINNED_LEAST = 4096
"""Bytes of the smallest block of pinned memory; others are powers of two."""


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


def compute_capability(needed: tuple[str, ...], index: int = 0) -> str:
    """The compute capability of a GPU of the machine, as in "8.9", if an engine for `needed` runs on it (none: on any).

    Raises:
        EngineError: no driver, no GPU of that number, or another one.
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
    if index >= count:
        raise EngineError(f"this machine has no GPU {index}; it has {count}, counted from 0")
    facts = check(cuda.cudaGetDeviceProperties(index))
    found = f"{facts.major}.{facts.minor}"
    if needed and found not in needed:
        raise EngineError(f"this machine's GPU has compute capability {found}: {wanted}")
    return found


class _CudaMemory:
    """Device memory, noted as free when the last view is gone."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self.pointer = device.take(size)
        weakref.finalize(self, device.freed.append, (self.pointer, size)).atexit = False


class CudaDevice:
    """A GPU with a stream of its own; see `vlkv.backend.device.arrays.Device`.

    Device memory comes from the driver's pool, which keeps what is freed. Pinned memory is kept in blocks of powers of
    two. So a step that allocates as much as the one before calls the operating system for nothing.

    Args:
        index: the GPU's number.
        kernels: vlkv's own, where there are any.

    Attributes:
        stream: the stream.
        freed: address and size of memory whose views are gone; any thread may append.
        lost: recorded work that was not closed, likewise.
    """

    def __init__(self, index: int = 0, kernels: Kernels | None = None) -> None:
        self._kernels = kernels
        self._cuda = cuda = runtime()
        self.index = index
        self.use()
        self.stream = check(cuda.cudaStreamCreateWithFlags(NON_BLOCKING))
        self._pool = check(cuda.cudaDeviceGetDefaultMemPool(index))
        threshold = cuda.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        check(cuda.cudaMemPoolSetAttribute(self._pool, threshold, _number(KEEP)))
        kinds = cuda.cudaMemcpyKind
        self._kinds = (
            kinds.cudaMemcpyDeviceToDevice,
            kinds.cudaMemcpyHostToDevice,
            kinds.cudaMemcpyDeviceToHost,
        )
        self.freed: deque[tuple[int, int]] = deque()
        self._unpinned: deque[tuple[int, int]] = deque()
        self._blocks: defaultdict[int, list[int]] = defaultdict(list)
        self.lost: deque[Any] = deque()
        self._used = 0
        self._capturing = self._closed = False
        self._scratch: DeviceArray | None = None

    def use(self) -> None:
        """See `Device.use`; which device is current is a thread's own."""
        check(self._cuda.cudaSetDevice(self.index))

    def take(self, size: int) -> int:
        """Address of that many bytes, aligned to 256."""
        if self._capturing:
            raise EngineError("memory was asked for while work was recorded")
        self._give_back()
        pointer = int(check(self._cuda.cudaMallocAsync(max(size, 1), self.stream)))
        self._used += size
        return pointer

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Device.allocate`."""
        return DeviceArray(_CudaMemory(self, prod(shape) * BYTES[dtype]), tuple(shape), dtype)

    def scratch(self, size: int) -> DeviceArray:
        """Working memory of at least `size` bytes that all graphs share: on one stream no two run at once."""
        if self._scratch is None or self._scratch.nbytes < size:
            self._scratch = None
            self._scratch = self.allocate((-(-size // 4),), "int32")
        return self._scratch

    def clear(self, array: DeviceArray) -> None:
        """See `Device.clear`."""
        if array.nbytes:
            check(self._cuda.cudaMemsetAsync(array.pointer, 0, array.nbytes, self.stream))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """See `Device.pinned`."""
        size = max(prod(shape) * BYTES[dtype], PINNED_LEAST)
        size = 1 << (size - 1).bit_length()
        pointer = self._blocks[size].pop() if self._blocks[size] else self._pin(size)
        buffer = (ctypes.c_byte * size).from_address(pointer)
        weakref.finalize(buffer, self._unpinned.append, (pointer, size)).atexit = False
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
        done = len(self._unpinned)
        check(self._cuda.cudaStreamSynchronize(self.stream))
        for _ in range(done):
            pointer, size = self._unpinned.popleft()
            self._blocks[size].append(pointer)
        self._give_back()

    def replay(self, work: Callable[[], None]) -> CudaReplay:
        """See `Device.replay`: a CUDA graph, recorded the second time."""
        return CudaReplay(self, work)

    def record(self, work: Callable[[], None]) -> Any:
        """The work as an executable graph, which is not run; None where it can't be recorded."""
        cuda = self._cuda
        self._give_back()
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cuda.cudaStreamBeginCapture(self.stream, mode))
        self._capturing, failed = True, False
        try:
            work()
        except EngineError:
            failed = True
        finally:
            self._capturing = False
            status, graph = cuda.cudaStreamEndCapture(self.stream)
        if failed or int(status) != 0:
            if int(status) == 0:
                check(cuda.cudaGraphDestroy(graph))
            return None
        executable = check(cuda.cudaGraphInstantiate(graph, 0))
        check(cuda.cudaGraphDestroy(graph))
        return executable

    def launch(self, executable: Any) -> None:
        """Enqueues what was recorded."""
        check(self._cuda.cudaGraphLaunch(executable, self.stream))

    def forget(self, executable: Any) -> None:
        """Lets go of what was recorded, after its last run: the driver wants no graph destroyed that still runs."""
        check(self._cuda.cudaStreamSynchronize(self.stream))
        check(self._cuda.cudaGraphExecDestroy(executable))

    def recover(self) -> None:
        """See `Device.recover`."""
        cuda = self._cuda
        kinds, (_, capturing) = cuda.cudaStreamCaptureStatus, cuda.cudaStreamIsCapturing(self.stream)
        if capturing != kinds.cudaStreamCaptureStatusNone:
            status, graph = cuda.cudaStreamEndCapture(self.stream)
            if int(status) == 0:
                check(cuda.cudaGraphDestroy(graph))
        cuda.cudaGetLastError()

    def mover(self, keys: list[DeviceArray], values: list[DeviceArray]) -> SlotMover | None:
        """See `Device.mover`."""
        return None if self._kernels is None else SlotMover(self, self._kernels, keys, values)

    @property
    def picks(self) -> bool:
        """See `Device.picks`."""
        return self._kernels is not None

    def pick(self, logits: DeviceArray, token: DeviceArray, best: DeviceArray) -> None:
        """See `Device.pick`."""
        if self._kernels is None:
            raise EngineError("the device has no kernel that picks tokens")
        batch, vocab = logits.shape
        self._kernels.pick(batch, vocab, logits.pointer, token.pointer, best.pointer, int(self.stream))

    @property
    def draws(self) -> bool:
        """See `Device.draws`."""
        return self._kernels is not None and self._kernels.draws

    def draw(self, logits: DeviceArray, choice: DeviceArray, token: DeviceArray, best: DeviceArray) -> None:
        """See `Device.draw`."""
        if self._kernels is None:
            raise EngineError("the device has no kernel that draws tokens")
        batch, vocab = logits.shape
        places = logits.pointer, choice.pointer, token.pointer, best.pointer
        self._kernels.draw(batch, vocab, *places, int(self.stream))

    @property
    def used(self) -> int:
        """See `Device.used`."""
        self._give_back()
        return self._used

    @property
    def free(self) -> int:
        """See `Device.free`: what the driver has, and what its pool keeps unused."""
        cuda = self._cuda
        self._give_back()
        kinds = cuda.cudaMemPoolAttr
        reserved, used = (
            int(check(cuda.cudaMemPoolGetAttribute(self._pool, kind)))
            for kind in (kinds.cudaMemPoolAttrReservedMemCurrent, kinds.cudaMemPoolAttrUsedMemCurrent)
        )
        return int(check(cuda.cudaMemGetInfo())[0]) + reserved - used

    def close(self) -> None:
        """See `Device.close`."""
        if self._closed:
            return
        self._closed = True
        self.use()
        self._scratch = None
        self.synchronize()
        self.synchronize()
        check(self._cuda.cudaMemPoolTrimTo(self._pool, 0))
        for blocks in self._blocks.values():
            for pointer in blocks:
                check(self._cuda.cudaFreeHost(pointer))
        self._blocks.clear()
        check(self._cuda.cudaStreamDestroy(self.stream))

    def _give_back(self) -> None:
        """Frees, in the stream's order, what no view holds any more; nothing while work is recorded."""
        while self.lost and not self._capturing:
            self.forget(self.lost.popleft())
        while self.freed and not self._capturing:
            pointer, size = self.freed.popleft()
            check(self._cuda.cudaFreeAsync(pointer, self.stream))
            self._used -= size

    def _pin(self, size: int) -> int:
        if self._capturing:
            raise EngineError("memory was asked for while work was recorded")
        return int(check(self._cuda.cudaMallocHost(size)))

    def _copy(self, target: DeviceArray, to: int, source: DeviceArray, start: int, kind: int) -> None:
        cuda, kinds, stream = self._cuda, self._kinds[kind], self.stream
        for part in copies(target, source):
            first, begin, width = to + part.target, start + part.source, part.width
            pitches = part.target_pitch, part.source_pitch
            if part.height > 1 and max(pitches) <= MOST_PITCH:
                places = first, pitches[0], begin, pitches[1]
                check(cuda.cudaMemcpy2DAsync(*places, width, part.height, kinds, stream))
                continue
            for row in range(part.height):
                ends = first + row * pitches[0], begin + row * pitches[1]
                check(cuda.cudaMemcpyAsync(*ends, width, kinds, stream))


class SlotMover:
    """See `vlkv.backend.device.arrays.Mover`: one copy of the slots to the device, and one kernel."""

    def __init__(
        self, device: CudaDevice, kernels: Kernels, keys: list[DeviceArray], values: list[DeviceArray]
    ) -> None:
        batch, heads, _, dim = keys[0].shape
        self._device, self._kernels, self._alive = device, kernels, (keys, values)
        self._sizes = len(keys), batch, heads, dim * keys[0].itemsize
        table = [array.pointer for array in (*keys, *values)]
        capacity = [array.shape[2] for array in keys]
        self._table = to_device(device, np.array([*table, *capacity], np.int64))
        self._host: Int64 = device.pinned((len(keys) * batch * (heads + 1),), "int64")
        self._there = device.allocate(self._host.shape, "int64")

    def __call__(self, slots: Int64, last: Int64) -> None:
        """See `Mover`."""
        self._host[: slots.size], self._host[slots.size :] = slots.reshape(-1), last.reshape(-1)
        device, table, there = self._device, self._table.pointer, self._there.pointer
        device.upload(self._there, self._host)
        arrays = table + 8 * 2 * self._sizes[0]
        self._kernels.move_slots(
            self._sizes, table, arrays, there, there + 8 * slots.size, int(device.stream)
        )


class CudaReplay:
    """Work that is enqueued as it is at first, as TensorRT may compile and allocate, then recorded once and launched.

    Work that can't be recorded is always enqueued directly.
    """

    def __init__(self, device: CudaDevice, work: Callable[[], None]) -> None:
        self._device, self._work = device, work
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        """See `Replay`."""
        self._calls += 1
        if self._calls == 2 and getattr(self._work, "capturable", True):
            self._graph = self._device.record(self._work)
        if self._graph is None:
            self._work()
        else:
            self._device.launch(self._graph)

    def close(self) -> None:
        """See `Replay`."""
        graph, self._graph = self._graph, None
        self._calls = 2
        if graph is not None:
            self._device.forget(graph)

    def __del__(self) -> None:
        if self._graph is not None:
            self._device.lost.append(self._graph)


def _number(value: int) -> Any:
    """A number as `cudaMemPoolSetAttribute` takes it."""
    return import_module("cuda.bindings.driver").cuuint64_t(value)
