"""What the stand-in of `cuda.bindings.runtime` keeps: memory, streams with their work, and the rules that were broken.

Work is done when the stream is waited for and not before. Addresses are never used twice: what is used after it was
freed is seen.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
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
    def __init__(self, driver: State, device: int) -> None:
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


class State:
    """The driver's state, which its functions in `cuda_stand_in`, `cuda_memory` and `cuda_graphs` change.

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
    cudaStreamCaptureStatus = real.cudaStreamCaptureStatus  # noqa: N815
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
        self.error = OK
        """The error of the last call that failed, where a test says that there was one."""

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

    def touch(
        self, pointer: int, size: int, what: str, kinds: tuple[str, ...] = ("device",), running: bool = False
    ) -> bool:
        """Whether bytes lie inside one living piece of memory; where they do not, a rule is broken.

        `running` work may touch what a later call has freed: the stream frees it after the work.
        """
        if size <= 0:
            return True
        block = self._block(pointer)
        if block is None or pointer + size > block.pointer + block.size:
            return self._break(f"{what}: {size} bytes at {pointer:#x} lie outside any allocation")
        if not (block.there if running else block.live):
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
