"""Opens engines on ONNX Runtime's CUDA provider; `onnxruntime_graphs.py` runs their graphs.

Attention, scores and eviction are vlkv's operators of the CUDA provider, or `GroupQueryAttention` and ONNX bodies.
Unverified on CUDA: no test ran on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from vlkv.backend import kernels
from vlkv.backend.cuda import CudaDevice, compute_capability
from vlkv.backend.device.arrays import Device
from vlkv.backend.device.backend import DeviceBackend
from vlkv.backend.onnxruntime import open_session
from vlkv.backend.onnxruntime_graphs import Recordings, SessionGraph
from vlkv.backend.registry import Options
from vlkv.errors import EngineError
from vlkv.ops.native import native
from vlkv.storage.manifest import Manifest

CUDA = "CUDAExecutionProvider"
FLOAT8_SINCE = (8, 9)
RECORDED = "decoder"
"""The graph whose single-token steps ONNX Runtime records: the others run once a prompt."""
CAPTURE = "enable_cuda_graph"
UNRECORDED = "decode steps are not recorded as CUDA graphs"
UNRECORDABLE = {"functions": "with --operators functions, the body of Score has a loop"}
"""Operators whose graphs ONNX Runtime refuses to record, and why."""
REFUSED = "graph capture"
"""What ONNX Runtime's message holds if a graph has nodes that can't be recorded."""


def open_backend(directory: Path, manifest: Manifest, options: Options) -> DeviceBackend:
    """The engine's graphs on ONNX Runtime's CUDA provider.

    Raises:
        EngineError: there is no driver or no CUDA provider, the engine is for CPUs, or its operators need kernels that
            this installation was built without.
    """
    if manifest.device is None:
        raise EngineError(
            f"--device cuda needs an engine of 16 bits, as attention there has no float32: build {directory} with "
            "--dtype float16 or bfloat16"
        )
    found = compute_capability((), options.index)
    if manifest.cache_dtype == "float8" and tuple(map(int, found.split("."))) < FLOAT8_SINCE:
        raise EngineError(
            f"caches of float8 need a GPU of compute capability 8.9 or later, not {found}; build the engine with "
            "--kv-dtype int8"
        )
    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"--device cuda needs onnxruntime-gpu in place of onnxruntime {ort.__version__}; pip install 'vlkv[gpu]'"
        )
    own = kernels.find()
    library = Path(str(native().__file__)) if manifest.operators == "native" else None
    if library is not None and own is None:
        raise EngineError(
            "this vlkv was built without CUDA kernels, which the engine's operators need: install it with "
            "-C cmake.define.VLKV_CUDA=ON, or build the engine with --operators functions"
        )
    device = CudaDevice(options.index, own)
    settings = {"device_id": str(options.index), "user_compute_stream": str(int(device.stream))}
    providers = [(CUDA, settings), "CPUExecutionProvider"]
    return device_backend(directory, manifest, device, "cuda", providers, options.index, library, record=True)


def device_backend(
    directory: Path,
    manifest: Manifest,
    device: Device,
    kind: str,
    providers: list[Any],
    index: int = 0,
    library: Path | None = None,
    record: bool = False,
) -> DeviceBackend:
    """The engine's graphs on the device number `index` of those that ONNX Runtime calls `kind`.

    Args:
        directory: the verified engine directory.
        manifest: its manifest.
        device: holds the arrays.
        kind: `cuda`, or `cpu` for a device in the host's memory.
        providers: ONNX Runtime's, the first of which has to be there.
        index: the number.
        library: registers vlkv's operators, where the engine uses them.
        record: whether ONNX Runtime records decode steps and launches them as one, where the engine's graph permits.

    Raises:
        EngineError: ONNX Runtime opened a graph without the first of the providers, as it does where a library of
            that provider is missing. It would take the device's addresses for the host's.
    """
    options = ort.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    where, graphs, notes = (kind, index), {}, []
    if record and manifest.operators in UNRECORDABLE:
        record = False
        notes.append(f"{UNRECORDED}: {UNRECORDABLE[manifest.operators]}")
    for path in sorted(directory.glob("*.onnx")):
        session = recordings = None
        if record and path.stem == RECORDED:
            session, said = _recordable(path, options, providers)
            if session is None:
                notes.append(f"{UNRECORDED}: {said}")
            else:
                recordings = Recordings(device, notes)
        if session is None:
            session = open_session(path, options, providers)
        found = session.get_providers()
        if wanted not in found:
            device.close()
            raise EngineError(
                f"ONNX Runtime {ort.__version__} opened {path.name} with {', '.join(found)}, not {wanted}: "
                "a library that it needs is missing; pip install 'vlkv[gpu]' brings CUDA's and cuDNN's"
            )
        graphs[path.stem] = SessionGraph(session, device, where, recordings)
    return DeviceBackend(device, graphs, manifest, notes)


def _recordable(path: Path, options: Any, providers: list[Any]) -> tuple[Any, str]:
    """A session whose runs may be recorded, or None and ONNX Runtime's reason.

    It refuses graphs with control flow, and those with a node outside the CUDA provider, unless it computes shapes.
    """
    name, settings = providers[0]
    asked = [(name, settings | {CAPTURE: "1"}), *providers[1:]]
    try:
        return open_session(path, options, asked), ""
    except EngineError as error:
        if REFUSED not in str(error):
            raise
        return None, str(error)
