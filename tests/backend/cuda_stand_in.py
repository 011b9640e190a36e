"""A stand-in for `cuda.bindings.runtime`: host memory behind the driver's functions, and the driver's rules.

What the driver forbids, or leaves undefined, is an error here: the call returns what the driver would, and the rule
that was broken stands in `broken`, which tests hold to be empty. Enumerations are those of the real package.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

from backend.cuda_graphs import Graphs
from backend.cuda_memory import Memory
from backend.cuda_state import INVALID, NO_HANDLE, NOT_IN_CAPTURE, OK, Graph, Stream, Work

__all__ = ["OK", "Graph", "StandIn", "Work"]


class StandIn(Memory, Graphs):
    """The functions of the runtime that vlkv calls, with the signatures of `cuda.bindings`; see `cuda_state.State`."""

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
