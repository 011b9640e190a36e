"""ONNX Runtime's sessions bound to raw pointers of a device, and the recordings of their runs (CUDA graphs).

Unverified on CUDA: no test ran on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vlkv.backend.device.arrays import Device, DeviceArray
from vlkv.backend.onnxruntime import BFLOAT16
from vlkv.errors import EngineError

FLOAT8 = 17
"""ONNX's number of E4M3 without infinities."""
TYPES = {"bfloat16": BFLOAT16, "float8": FLOAT8, "int8-channel": np.dtype(np.int8)}
"""Element types as ONNX Runtime takes them, of names that NumPy does not have: a dtype, or ONNX's number."""
GRAPH_ID = "gpu_graph_id"
"""The run option that names a recording."""
UNRECORDED = -1
"""The number of a run that ONNX Runtime neither records nor replays."""
MOST = 64
"""Recordings of a session: its CUDA provider keeps each until the session ends."""

Signature = tuple[object, ...]
"""All that a recording depends on: the thread, and the names, addresses and shapes of what is bound."""


class Recordings:
    """The recordings that ONNX Runtime's CUDA provider makes of one session's runs, by what is bound.

    A run under a number that is new is done twice, once directly and once to record it; later runs under that number
    launch the recording, whatever is bound. So a number belongs to one signature. A decode step may be done twice: it
    writes the same slots. The provider keeps recordings per thread.

    Args:
        device: whose stream records.
        notes: where the reason goes if a run can't be recorded.
    """

    def __init__(self, device: Device, notes: list[str]) -> None:
        self._device, self._notes = device, notes
        self._numbers: dict[Signature, int] = {}
        self.failed = False

    def number(self, bound: Signature) -> int:
        """The recording of what is bound, or `UNRECORDED`: there are too many, or one has failed."""
        signature = (threading.get_ident(), *bound)
        if self.failed or (signature not in self._numbers and len(self._numbers) == MOST):
            return UNRECORDED
        return self._numbers.setdefault(signature, len(self._numbers) + 1)

    def fail(self, reason: str) -> None:
        """No run is recorded any more. The device's stream takes work again."""
        self.failed = True
        self._device.recover()
        self._notes.append(f"decode steps are not recorded as CUDA graphs any more: {reason}")


class SessionGraph:
    """A session; see `vlkv.backend.device.arrays.Graph`. Inputs in the host's memory stay there.

    Args:
        session: ONNX Runtime's.
        device: holds the arrays.
        where: the device's kind and number, as ONNX Runtime names it.
        recordings: of the session, if it was opened to be recorded.
    """

    def __init__(
        self, session: Any, device: Device, where: tuple[str, int], recordings: Recordings | None = None
    ) -> None:
        self._session, self._device, self._where, self._recordings = session, device, where, recordings

    def run(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> None:
        """See `Graph.run`: it is not recorded."""
        self.bind(inputs, outputs, profile)()

    def bind(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> SessionBound:
        """See `Graph.bind`."""
        binding, places = self._session.io_binding(), []
        for name, array in inputs.items():
            if isinstance(array, np.ndarray):
                binding.bind_cpu_input(name, array)
            else:
                binding.bind_input(name, *self._where, _type(array), array.shape, array.pointer)
                places.append((name, array.pointer, array.shape))
        for name, made in outputs.items():
            binding.bind_output(name, *self._where, _type(made), made.shape, made.pointer)
            places.append((name, made.pointer, made.shape))
        alive = dict(inputs), dict(outputs)
        return SessionBound(self._session, binding, alive, self._recordings, tuple(places))

    def close(self) -> None:
        """See `Graph.close`."""
        self._session = None


class SessionBound:
    """A binding; see `vlkv.backend.device.arrays.Bound`.

    vlkv does not record it, as ONNX Runtime may wait for the stream. ONNX Runtime itself does, from the second run on:
    in the first one it allocates, and its plan of the memory is made.
    """

    capturable = False

    def __init__(
        self,
        session: Any,
        binding: Any,
        alive: object,
        recordings: Recordings | None,
        places: Signature,
    ) -> None:
        self._session, self._binding, self._alive = session, binding, alive
        self._recordings, self._places = recordings, places
        self._warm = False
        self._plain = self._options(UNRECORDED)
        self._chosen: dict[int, Any] = {}  # options by thread

    def __call__(self) -> None:
        """See `Bound`."""
        options = self._plain
        if self._recordings is not None and self._warm and not self._recordings.failed:
            options = self._recorded(self._recordings)
        self._warm = True
        try:
            self._run(options)
        except EngineError as error:
            if self._recordings is None or options is self._plain:
                raise
            self._recordings.fail(str(error))
            self._run(self._plain)

    def _recorded(self, recordings: Recordings) -> Any:
        """The options of this thread, which are found once: a number is never given away."""
        thread = threading.get_ident()
        if thread not in self._chosen:
            number = recordings.number(self._places)
            self._chosen[thread] = self._plain if number == UNRECORDED else self._options(number)
        return self._chosen[thread]

    def close(self) -> None:
        """See `Bound.close`."""
        self._binding = self._alive = None

    def _run(self, options: Any) -> None:
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime can't run a graph on the device: {first}") from None

    def _options(self, number: int) -> Any:
        options = ort.RunOptions()
        # the stream keeps the order; only who reads on the host waits
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._recordings is not None:
            options.add_run_config_entry(GRAPH_ID, str(number))
        return options


def _type(array: DeviceArray) -> Any:
    """The element type as ONNX Runtime takes it: NumPy's, or ONNX's number."""
    return TYPES.get(array.dtype) or np.dtype(array.dtype)
