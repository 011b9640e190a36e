"""Memory and copies of the stand-in for `cuda.bindings.runtime`."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from cuda.bindings import runtime as real

from backend.cuda_state import INVALID, MOST_PITCH, NO_HANDLE, NO_MEMORY, NOT_IN_CAPTURE, OK, State, Work


class Memory(State):
    """Allocations in the order of calls, frees and copies in the order of streams."""

    def cudaMallocAsync(self, size: int, stream: Any) -> tuple[Any, Any]:  # noqa: N802
        self._count("cudaMallocAsync")
        if (found := self.streams.get(int(stream))) is None:
            return NO_HANDLE, None
        if found.device != self._current():
            self._break(f"memory of device {found.device} while {self._current()} is current")
            return NO_HANDLE, None
        if found.capture is not None:
            found.invalid = True
            self._break("memory was allocated on a stream that records")
            return NOT_IN_CAPTURE, None
        if self._sizes["device", found.device] + size > self._memory:
            return NO_MEMORY, None
        return OK, self._make(size, "device", found.device)

    def cudaFreeAsync(self, pointer: Any, stream: Any) -> tuple[Any]:  # noqa: N802
        found = self.streams.get(int(stream))
        if found is None:
            self._break("memory was freed on a stream that is no more")
            return (NO_HANDLE,)
        if found.capture is not None:
            found.invalid = True
            self._break("memory was freed on a stream that records")
            return (NOT_IN_CAPTURE,)
        block = self._whole(pointer, "device")
        if block is None:
            return (INVALID,)
        self._end(block)
        found.queue.append(Work(lambda: self._drop(block)))
        return (OK,)

    def cudaMallocHost(self, size: int) -> tuple[Any, Any]:  # noqa: N802
        self._count("cudaMallocHost")
        if (found := self.capturing()) is not None and found.thread == threading.get_ident():
            found.invalid = True
            self._break("pinned memory was allocated while the thread records")
            return NOT_IN_CAPTURE, None
        return OK, self._make(size, "pinned", -1)

    def cudaFreeHost(self, pointer: Any) -> tuple[Any]:  # noqa: N802
        if (found := self.capturing()) is not None:
            found.invalid = True
            self._break("pinned memory was freed while a stream records")
            return (NOT_IN_CAPTURE,)
        block = self._whole(pointer, "pinned")
        if block is None:
            return (INVALID,)
        for stream in self.streams.values():
            self._flush(stream)
        self._end(block)
        self._drop(block)
        return (OK,)

    def cudaDeviceGetDefaultMemPool(self, device: int) -> tuple[Any, Any]:  # noqa: N802
        return OK, device

    def cudaMemPoolSetAttribute(self, pool: Any, attr: Any, value: Any) -> tuple[Any]:  # noqa: N802
        assert attr == self.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        value.getPtr()
        self.thresholds[pool] = int(value)
        return (OK,)

    def cudaMemPoolGetAttribute(self, pool: Any, attr: Any) -> tuple[Any, int]:  # noqa: N802
        return OK, self._sizes["device", pool]

    def cudaMemPoolTrimTo(self, pool: Any, least: int) -> tuple[Any]:  # noqa: N802
        return (OK,)

    def cudaMemsetAsync(self, pointer: int, value: int, count: int, stream: Any) -> tuple[Any]:  # noqa: N802
        work = Work(lambda: ctypes.memset(pointer, value, count) and None, [(pointer, count, "device")])
        return (self.enqueue(stream, "memset", work),)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> tuple[Any]:  # noqa: N802
        return self._copy(dst, count, src, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(  # noqa: N802
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Any, stream: Any
    ) -> tuple[Any]:
        if width > min(dpitch, spitch) or max(dpitch, spitch) > MOST_PITCH:
            self._break(f"a copy of rows of {width} bytes with pitches {dpitch} and {spitch}")
            return (real.cudaError_t.cudaErrorInvalidPitchValue,)
        return self._copy(dst, dpitch, src, spitch, width, height, kind, stream)

    def _copy(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Any, stream: Any
    ) -> tuple[Any]:
        self._count("copies")
        kinds = {1: ("pinned", "device"), 2: ("device", "pinned"), 3: ("device", "device")}[int(kind)]
        touched = []
        for place, pitch, memory in ((src, spitch, kinds[0]), (dst, dpitch, kinds[1])):
            touched.append((place, pitch * (height - 1) + width, memory))

        def run() -> None:
            for row in range(height):
                ctypes.memmove(dst + row * dpitch, src + row * spitch, width)

        return (self.enqueue(stream, f"copy {kinds[0]} to {kinds[1]}", Work(run, touched)),)
