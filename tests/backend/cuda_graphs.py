"""Recorded graphs and events of the stand-in for `cuda.bindings.runtime`."""

from __future__ import annotations

import threading
from typing import Any

from backend.cuda_state import INVALID, INVALIDATED, NOT_IN_CAPTURE, NOT_READY, OK, Event, Graph, State, Work


class Graphs(State):
    """What a stream records is not done; a graph's launch adds its work to a stream."""

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any]:  # noqa: N802
        found = self.streams[int(stream)]
        if found.capture is not None:
            return (INVALID,)
        if mode != self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            self._break("other threads may not allocate while this one records")
        found.capture, found.invalid, found.thread = [], False, threading.get_ident()
        return (OK,)

    def cudaStreamIsCapturing(self, stream: Any) -> tuple[Any, Any]:  # noqa: N802
        found, kinds = self.streams[int(stream)], self.cudaStreamCaptureStatus
        if found.capture is None:
            return OK, kinds.cudaStreamCaptureStatusNone
        return OK, kinds.cudaStreamCaptureStatusActive

    def cudaGetLastError(self) -> tuple[Any]:  # noqa: N802
        error, self.error = self.error, OK
        return (error,)

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
        queue = [] if graph.stream is None else graph.stream.queue
        if {id(work) for work in queue} & {id(work) for work in graph.work}:
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
