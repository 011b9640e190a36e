"""The options of all ONNX Runtime sessions on the CPU."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from vlkv.ops.native import native
from vlkv.ops.tuned import Tuned

REST = "session.force_spinning_stop"
"""Without this entry a session's threads spin for over 50 ms after each run."""


def session_options(threads: int = 0, operators: str = "functions", tuned: Tuned | None = None) -> Any:
    """Options for sessions that leave the cores free between runs.

    Args:
        threads: threads of one operator, 0 for all cores.
        operators: with `native`, graphs may contain the operators of `vlkv._native`.
        tuned: the library that they come from instead.

    Raises:
        EngineError: native operators are requested and were not built.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(REST, "1")
    if operators == "native":
        options.register_custom_ops_library(str(tuned.path) if tuned else native().__file__)
    return options
