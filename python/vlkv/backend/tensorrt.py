"""Opens engines with TensorRT or TensorRT for RTX on this machine's GPU. Unverified: no test ran on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.cuda import CudaDevice, compute_capability
from vlkv.backend.device.arrays import DeviceArray
from vlkv.backend.device.backend import DeviceBackend
from vlkv.backend.registry import Options
from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
PLUGIN = "VLKV_TENSORRT_PLUGIN"
"""The environment variable that names the plugin's library."""


def open_backend(directory: Path, manifest: Manifest, options: Options) -> DeviceBackend:
    """Opens the engine's graphs on this machine's GPU.

    Args:
        directory: the verified engine directory.
        manifest: its manifest.
        options: `plugin` is the path of `libvlkv_tensorrt.so`, for an engine that uses the plugin; the default is the
            environment variable VLKV_TENSORRT_PLUGIN.

    Raises:
        EngineError: there is no driver, the GPU is another one, a package or the plugin is missing, or the engine was
            built by another version of TensorRT.
    """
    limits = manifest.device
    compute_capability(limits.compute_capabilities if limits else ())
    trt = _bindings(manifest.backend)
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                errors.append(text)

    log = Log()
    runtime = trt.Runtime(log)
    if manifest.operators == "native":
        runtime.get_plugin_registry().load_library(str(_plugin(options.plugin)))
    device = CudaDevice()
    graphs = {}
    for path in sorted(directory.glob("*.engine")):
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            built = manifest.versions.get(manifest.backend, "unknown")
            raise EngineError(
                f"{path} can't be opened by {manifest.backend} {trt.__version__}, it was built by {built}: "
                f"{errors[0] if errors else 'no reason given'}"
            )
        graphs[path.stem] = _Graph(trt, engine, device, errors, (runtime, log))
    return DeviceBackend(device, graphs, manifest)


def _bindings(backend: str) -> Any:
    for name in MODULES[backend]:
        try:
            module = import_module(name)
        except ImportError:
            continue
        if hasattr(module, "Runtime"):
            return module
    raise EngineError(f"this engine needs the package {MODULES[backend][0]}; pip install 'vlkv[{backend}]'")


def _plugin(given: Path | None) -> Path:
    named = given or (Path(os.environ[PLUGIN]) if PLUGIN in os.environ else None)
    if named is None:
        raise EngineError(f"this engine uses vlkv's TensorRT plugin: give its path with --plugin or {PLUGIN}")
    if not named.is_file():
        raise EngineError(f"{named}: no such plugin")
    return named.resolve()


class _Graph:
    """An engine with one context per profile; see `vlkv.backend.device.arrays.Graph`."""

    def __init__(self, trt: Any, engine: Any, device: CudaDevice, errors: list[str], alive: object) -> None:
        self._trt, self._engine, self._device, self._errors, self._alive = trt, engine, device, errors, alive
        self._contexts: dict[int, Any] = {}

    def run(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> None:
        """See `Graph.run`."""
        context = self._context(profile)
        for name, array in inputs.items():
            place = array.ctypes.data if isinstance(array, np.ndarray) else array.pointer
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, place)
        for name, made in outputs.items():
            context.set_tensor_address(name, made.pointer)
        missing = context.infer_shapes()
        if missing or not context.execute_async_v3(int(self._device.stream)):
            reason = self._errors[-1] if self._errors else f"inputs {missing} lack a shape or an address"
            raise EngineError(f"TensorRT can't run {self._engine.name}: {' '.join(reason.split())}")

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            context = self._engine.create_execution_context(strategy)
            if context is None or not context.set_optimization_profile_async(
                profile, int(self._device.stream)
            ):
                raise EngineError(f"TensorRT has no memory for {self._engine.name}: {self._errors[-1:]}")
            self._contexts[profile] = context
        return self._contexts[profile]
