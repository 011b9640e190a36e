"""A stand-in for `cuda.bindings.runtime`: host memory behind the driver's functions, and the driver's rules.

What the driver forbids, or leaves undefined, is an error here: the call returns what the driver would, and the rule
that was broken stands in `broken`, which tests hold to be empty. Work is done when the stream is waited for and not
before, so that whoever reads too early reads garbage. Addresses are never used twice: what is used after it was freed
is seen. Enumerations are those of the real package.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

RESERVED = 1 << 40
ALIGNED = 256
PAGE = 4096
MOST_PITCH = 2**31 - 1
OK = real.cudaError_t.cudaSuccess
INVALID = real.cudaError_t.cudaErrorInvalidValue
NO_MEMORY = real.cudaError_t.cudaErrorMemoryAllocation
NO_HANDLE = real.cudaError_t.cudaErrorInvalidResourceHandle
NOT_IN_CAPTURE = real.cudaError_t.cudaErrorStreamCaptureUnsupported
INVALIDATED = real.cudaError_t.cudaErrorStreamCaptureInvalidated
NOT_READY = real.cudaError_t.cudaErrorNotReady


@dataclass
class Block:
    """A piece of memory. `live` in the order of calls, `there` in the order of the stream."""

    pointer: int
    size: int
    kind: str
    device: int
    live: bool = True
    there: bool = True


@dataclass
class Work:
    """What a stream does: the call, and each address that it touches, with the bytes from there on."""

    run: Callable[[], None]
    touches: list[tuple[int, int, str]] = field(default_factory=list)
    after: Callable[[], None] | None = None


class Stream:
    def __init__(self, driver: StandIn, device: int) -> None:
        self.driver, self.device, self.queue = driver, device, []
        self.capture: list[Work] | None = None
        self.invalid = False
        self.thread = 0
        driver.handles += 1
        self.handle = 0x5000 + driver.handles

    def __int__(self) -> int:
        return self.handle


class Graph:
    def __init__(self, work: list[Work]) -> None:
        self.work = work
        self.destroyed = False
        self.stream: Stream | None = None
        """Where it was launched last."""


class Event:
    def __init__(self) -> None:
        self.done, self.recorded, self.captured = True, False, False


class StandIn:
    """The functions of the runtime that vlkv calls, with the signatures of `cuda.bindings`.

    Args:
        devices: how many GPUs there are.
        capability: theirs.
        memory: bytes that each has.

    Attributes:
        broken: the rules that were broken, as texts.
        calls: how often each function was called.
    """

    cudaMemcpyKind = real.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = real.cudaStreamCaptureMode  # noqa: N815
    cudaMemPoolAttr = real.cudaMemPoolAttr  # noqa: N815

    def __init__(self, devices: int = 1, capability: tuple[int, int] = (8, 9), memory: int = 1 << 30) -> None:
        self._devices, self._capability, self._memory = devices, capability, memory
        self._space = mmap.mmap(
            -1,
            RESERVED,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
        self._view = (ctypes.c_byte * RESERVED).from_buffer(self._space)
        self._begin = ctypes.addressof(self._view)
        self._next = self._begin
        self._starts: list[int] = []
        self._blocks: list[Block] = []
        self._sizes: Counter[tuple[str, int]] = Counter()
        self._threads = threading.local()
        self._lock = threading.RLock()
        self.streams: dict[int, Stream] = {}
        self.graphs: list[Graph] = []
        self.thresholds: dict[int, int] = {}
        self.broken: list[str] = []
        self.calls: dict[str, int] = {}
        self.handles = 0
        self.executed = 0

    # What tests ask.

    def bytes(self, kind: str = "device") -> int:
        """Bytes that are allocated, in the order of calls."""
        return sum(size for (found, _), size in self._sizes.items() if found == kind)

    def on(self, device: int) -> int:
        """Bytes of one device."""
        return self._sizes["device", device]

    def leaks(self) -> list[str]:
        """Everything that is still there."""
        found = [f"{b.kind} memory of {b.size} bytes" for b in self._blocks if b.live]
        found += ["a stream"] * len(self.streams)
        return found + ["a graph" for graph in self.graphs if not graph.destroyed]

    def capturing(self) -> Stream | None:
        """The stream that records, where one does."""
        return next((stream for stream in self.streams.values() if stream.capture is not None), None)

    def touch(self, pointer: int, size: int, what: str, kinds: tuple[str, ...] = ("device",)) -> bool:
        """Whether bytes lie inside one living piece of memory; where they do not, a rule is broken."""
        if size <= 0:
            return True
        block = self._block(pointer)
        if block is None or pointer + size > block.pointer + block.size:
            return self._break(f"{what}: {size} bytes at {pointer:#x} lie outside any allocation")
        if not block.live:
            return self._break(f"{what}: use after free of {size} bytes at {pointer:#x}")
        if block.kind not in kinds:
            return self._break(f"{what}: memory is {block.kind}, wanted {' or '.join(kinds)}")
        if block.kind == "device" and block.device != self._current():
            return self._break(f"{what}: memory of device {block.device} on device {self._current()}")
        return True

    def enqueue(self, stream: Any, what: str, work: Work) -> Any:
        """Adds work to a stream, or to what it records. For the stand-ins of TensorRT and of kernels too."""
        found = self.streams.get(int(stream))
        if found is None:
            self._break(f"{what}: no such stream")
            return NO_HANDLE
        if found.device != self._current():
            self._break(f"{what}: a stream of device {found.device} while {self._current()} is current")
            return NO_HANDLE
        good = [self.touch(*touched[:2], what, (touched[2],)) for touched in work.touches]
        if not all(good):
            return INVALID
        if found.capture is not None:
            found.capture.append(work)
        else:
            found.queue.append(work)
        return OK

    # Devices.

    def cudaGetDeviceCount(self) -> tuple[Any, Any]:  # noqa: N802
        return (OK, self._devices) if self._devices else (real.cudaError_t.cudaErrorNoDevice, None)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:  # noqa: N802
        if not 0 <= device < self._devices:
            return INVALID, None
        return OK, SimpleNamespace(major=self._capability[0], minor=self._capability[1])

    def cudaSetDevice(self, device: int) -> tuple[Any]:  # noqa: N802
        if not 0 <= device < self._devices:
            return (real.cudaError_t.cudaErrorInvalidDevice,)
        self._threads.device = device
        return (OK,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:  # noqa: N802
        used = self._sizes["device", self._current()]
        return OK, self._memory - used, self._memory

    # Streams.

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, Any]:  # noqa: N802
        if flags != 1:
            self._break("a stream that waits for the default stream")
        stream = Stream(self, self._current())
        self.streams[int(stream)] = stream
        return OK, stream

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any]:  # noqa: N802
        self._count("cudaStreamSynchronize")
        found = self.streams.get(int(stream))
        if found is None:
            return (NO_HANDLE,)
        if found.capture is not None:
            found.invalid = True
            self._break("a stream that records was waited for")
            return (NOT_IN_CAPTURE,)
        self._flush(found)
        return (OK,)

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any]:  # noqa: N802
        found = self.streams.pop(int(stream), None)
        if found is None:
            self._break("a stream was destroyed twice")
            return (NO_HANDLE,)
        self._flush(found)
        return (OK,)

    # Memory.

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

    # Copies.

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

    # Graphs.

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any]:  # noqa: N802
        found = self.streams[int(stream)]
        if found.capture is not None:
            return (INVALID,)
        if mode != self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            self._break("other threads may not allocate while this one records")
        found.capture, found.invalid, found.thread = [], False, threading.get_ident()
        return (OK,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, Any]:  # noqa: N802
        found = self.streams[int(stream)]
        work, found.capture = found.capture, None
        if work is None or found.thread != threading.get_ident():
            return INVALID, None
        if found.invalid:
            return INVALIDATED, None
        return OK, self._graph(work)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Any, Any]:  # noqa: N802
        if graph.destroyed:
            return INVALID, None
        return OK, self._graph(list(graph.work))

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Any]:  # noqa: N802
        return (self._destroy(graph),)

    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[Any]:  # noqa: N802
        if graph.stream is not None and graph.stream.queue:
            self._break("a graph was destroyed before its last run had ended")
        return (self._destroy(graph),)

    def cudaGraphLaunch(self, graph: Graph, stream: Any) -> tuple[Any]:  # noqa: N802
        self._count("cudaGraphLaunch")
        if graph.destroyed:
            self._break("a graph was launched after its end")
            return (INVALID,)
        graph.stream = self.streams[int(stream)]
        for work in graph.work:
            status = self.enqueue(stream, "a recorded call", work)
            if status != OK:
                return (status,)
        return (OK,)

    # Events.

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, Any]:  # noqa: N802
        return OK, Event()

    def cudaEventRecord(self, event: Event, stream: Any) -> tuple[Any]:  # noqa: N802
        event.done, event.captured = False, self.streams[int(stream)].capture is not None

        def run() -> None:
            event.done = True

        return (self.enqueue(stream, "event", Work(run)),)

    def cudaEventSynchronize(self, event: Event) -> tuple[Any]:  # noqa: N802
        if event.captured:
            self._break("a recorded event was waited for")
            return (NOT_IN_CAPTURE,)
        for stream in self.streams.values():
            self._flush(stream)
        return (OK,)

    def cudaEventQuery(self, event: Event) -> tuple[Any]:  # noqa: N802
        return (OK if event.done else NOT_READY,)

    def cudaEventDestroy(self, event: Event) -> tuple[Any]:  # noqa: N802
        return (OK,)

    # Inside.

    def _current(self) -> int:
        return getattr(self._threads, "device", 0)

    def _break(self, rule: str) -> bool:
        self.broken.append(rule)
        return False

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def _graph(self, work: list[Work]) -> Graph:
        graph = Graph(work)
        self.graphs.append(graph)
        for one in work:
            if (recorded := getattr(one.after, "recorded", None)) is not None:
                recorded(graph)
        return graph

    def _destroy(self, graph: Graph) -> Any:
        if graph.destroyed:
            self._break("a graph was destroyed twice")
            return INVALID
        graph.destroyed = True
        self.graphs.remove(graph)
        return OK

    def _make(self, size: int, kind: str, device: int) -> int:
        with self._lock:
            step = PAGE if kind == "device" else ALIGNED
            pointer = self._next
            self._next += -(-size // step) * step + step
            assert self._next < self._begin + RESERVED, "the stand-in's addresses are used up"
            ctypes.memset(pointer, 0xFF, size)
            self._starts.append(pointer)
            self._blocks.append(Block(pointer, size, kind, device))
            self._sizes[kind, device] += size
            return pointer

    def _block(self, pointer: int) -> Block | None:
        index = bisect_right(self._starts, pointer) - 1
        return self._blocks[index] if index >= 0 else None

    def _whole(self, pointer: Any, kind: str) -> Block | None:
        block = self._block(int(pointer))
        if block is None or block.pointer != int(pointer) or block.kind != kind:
            self._break(f"{pointer:#x} was freed, and is no {kind} memory")
            return None
        if not block.live:
            self._break(f"{kind} memory was freed twice")
            return None
        return block

    def _end(self, block: Block) -> None:
        block.live = False
        self._sizes[block.kind, block.device] -= block.size

    def _drop(self, block: Block) -> None:
        """Gives the pages back; the addresses stay unused."""
        first = -(-(block.pointer - self._begin) // PAGE) * PAGE
        last = (block.pointer - self._begin + block.size) // PAGE * PAGE
        block.there = False
        if last > first:
            self._space.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _flush(self, stream: Stream) -> None:
        with self._lock:
            work, stream.queue = stream.queue, []
            for one in work:
                for pointer, size, _ in one.touches:
                    block = self._block(pointer) if size else None
                    assert block is None or block.there, (
                        "memory is gone that work in the stream's order needs"
                    )
                one.run()
                self.executed += 1
