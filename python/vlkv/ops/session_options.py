"""What every session of ONNX Runtime on the CPU is opened with."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from vlkv.ops.native import native

REST = "session.force_spinning_stop"
"""A session's threads wait for work in a loop, for over 50 ms after its last run, unless this is said."""


def session_options(threads: int = 0, operators: str = "functions") -> Any:
    """Options whose sessions leave the cores to others between runs.

    Args:
        threads: of one operator, 0 for all cores.
        operators: with `native`, graphs may hold the operators of `vlkv._native`.

    Raises:
        EngineError: these are asked for and were not built.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(REST, "1")
    if operators == "native":
        options.register_custom_ops_library(native().__file__)
    return options
