"""A stand-in for ONNX Runtime's CUDA provider: its CPU provider over the memory of the driver's stand-in.

With `enable_cuda_graph` it records as the provider does: under a number that is new a run is done twice, the second
time to record it. Later runs under that number launch the recording, with what was bound then. A recording lives as
long as its session.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from backend.cuda_stand_in import OK, StandIn, Work
from vlkv.backend.onnxruntime_device import CAPTURE, CUDA


class Session:
    """An ONNX Runtime that has CUDA's provider, or says so and then runs on the CPU.

    Attributes:
        works: whether the provider is there.
        refuses: whether the provider has no kernel for a node, so that it can't record.
        fails: whether recording breaks a rule of the driver's.
        recorded: runs under a number that was new, of all sessions.
        launched: recordings that were launched.
    """

    real = ort.InferenceSession
    driver: StandIn
    works = True
    refuses = False
    fails = False
    recorded = launched = 0

    def __new__(cls, path: Any, options: Any, providers: Any) -> Any:
        alone = providers == ["CPUExecutionProvider"]
        return cls.real(path, options, providers=providers) if alone else super().__new__(cls)

    def __init__(self, path: Any, options: Any, providers: Any) -> None:
        self.asked = providers
        self.records = providers[0][1].get(CAPTURE) == "1"
        if self.records and self.refuses:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as all compute graph "
                "nodes have not been partitioned to the CUDAExecutionProvider"
            )
        self._session = Session.real(path, options, providers=["CPUExecutionProvider"])
        self._graphs: dict[int, Any] = {}

    def __del__(self) -> None:
        for graph in getattr(self, "_graphs", {}).values():
            self.driver.cudaGraphExecDestroy(graph)

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"] if self.works else ["CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self._session)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        stream = next(iter(self.driver.streams))
        number = int(options.get_run_config_entry("gpu_graph_id")) if self.records else -1
        if number in self._graphs:
            self._launch(number, stream)
            return
        self.driver.cudaStreamSynchronize(stream)
        self._session.run_with_iobinding(binding.real)
        if number != -1:
            self._record(number, binding, stream)

    def _record(self, number: int, binding: Binding, stream: int) -> None:
        driver = self.driver
        driver.cudaStreamBeginCapture(stream, driver.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        if self.fails:
            driver.error = "invalidated"
            raise RuntimeError(
                "CUDA failure 900: operation not permitted when stream is capturing\nmore of it"
            )
        session, real = self._session, binding.real
        work = Work(lambda: session.run_with_iobinding(real), list(binding.touches))
        assert driver.enqueue(stream, "a session's run", work) == OK
        _, graph = driver.cudaStreamEndCapture(stream)
        _, self._graphs[number] = driver.cudaGraphInstantiate(graph, 0)
        driver.cudaGraphDestroy(graph)
        Session.recorded += 1
        self._launch(number, stream)

    def _launch(self, number: int, stream: int) -> None:
        Session.launched += 1
        assert self.driver.cudaGraphLaunch(self._graphs[number], stream) == (OK,)
        self.driver.cudaStreamSynchronize(stream)


class Binding:
    """Binds what CUDA's provider would get as the CPU's: the stand-in's memory is the host's."""

    driver: StandIn
    index = 0

    def __init__(self, session: Any) -> None:
        self.real = session.io_binding()
        self.touches: list[tuple[int, int, str]] = []

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.real.bind_cpu_input(name, array)

    def bind_input(self, name: str, kind: str, index: int, dtype: Any, shape: Any, pointer: int) -> None:
        self._check(kind, index, dtype, shape, pointer)
        self.real.bind_input(name, "cpu", 0, dtype, shape, pointer)

    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: Any, pointer: int) -> None:
        self._check(kind, index, dtype, shape, pointer)
        self.real.bind_output(name, "cpu", 0, dtype, shape, pointer)

    def _check(self, kind: str, index: int, dtype: Any, shape: Any, pointer: int) -> None:
        assert (kind, index) == ("cuda", self.index)
        size = int(np.prod(shape)) * dtype.itemsize
        assert self.driver.touch(pointer, size, "a binding")
        self.touches.append((pointer, size, "device"))
