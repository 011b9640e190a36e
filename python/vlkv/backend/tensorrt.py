"""Opens engines with TensorRT or TensorRT for RTX on this machine's GPU. Unverified: no test ran on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.backend import kernels
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
    compute_capability(limits.compute_capabilities if limits else (), options.index)
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
    plugin = _plugin(options.plugin) if manifest.operators == "native" else None
    if plugin is not None:
        runtime.get_plugin_registry().load_library(str(plugin))
    device = CudaDevice(options.index, kernels.find([plugin]))
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


class _Context:
    """A context of its own: shapes and addresses that no other run changes."""

    def __init__(self, graph: _Graph, profile: int) -> None:
        self.graph, self.profile = graph, profile
        self.made = made = graph.create(profile)
        if made is None or not made.set_optimization_profile_async(profile, int(graph.device.stream)):
            raise EngineError(f"TensorRT has no room for {graph.engine.name}: {graph.said()}")
        self.scratch: DeviceArray | None = None

    def bind(
        self, inputs: Mapping[str, DeviceArray | NDArray[Any]], outputs: Mapping[str, DeviceArray]
    ) -> None:
        """Sets shapes, addresses and working memory."""
        graph, context = self.graph, self.made
        for name, array in inputs.items():
            place = array.ctypes.data if isinstance(array, np.ndarray) else array.pointer
            if not (context.set_input_shape(name, array.shape) and context.set_tensor_address(name, place)):
                raise EngineError(
                    f"TensorRT takes no {name} of shape {list(array.shape)} in {graph.engine.name}: {graph.said()}"
                )
        for name, made in outputs.items():
            context.set_tensor_address(name, made.pointer)
        size = graph.engine.get_device_memory_size_for_profile_v2(self.profile)
        if size:
            self.scratch = graph.device.scratch(size)
            context.set_device_memory(self.scratch.pointer, self.scratch.nbytes)
        missing = context.infer_shapes()
        if missing:
            raise EngineError(
                f"TensorRT can't run {graph.engine.name}: inputs {missing} lack a shape or an address"
            )

    def enqueue(self) -> None:
        """Runs it on the device's stream."""
        if not self.made.execute_async_v3(int(self.graph.device.stream)):
            raise EngineError(f"TensorRT can't run {self.graph.engine.name}: {self.graph.said()}")

    @property
    def capturable(self) -> bool:
        """Whether a stream that records takes it: TensorRT for RTX tells, TensorRT's own contexts are."""
        asked = getattr(self.made, "is_stream_capturable", None)
        return True if asked is None else bool(asked(int(self.graph.device.stream)))


class _Bound:
    """See `vlkv.backend.device.arrays.Bound`: a context that is this one's until it is closed."""

    def __init__(self, context: _Context, alive: object) -> None:
        self._context: _Context | None = context
        self._alive = alive
        self.capturable = context.capturable

    def __call__(self) -> None:
        assert self._context is not None, "closed"
        self._context.enqueue()

    def close(self) -> None:
        """See `Bound.close`: the context is used again."""
        if self._context is not None:
            self._context.graph.give(self._context)
        self._context = self._alive = None


class _Graph:
    """An engine with contexts that are used again; see `vlkv.backend.device.arrays.Graph`.

    Contexts get their working memory from here, one piece for all: those of one stream never run at once, and
    TensorRT for RTX can be recorded only where it does not allocate by itself.
    """

    def __init__(self, trt: Any, engine: Any, device: CudaDevice, errors: list[str], alive: object) -> None:
        self._trt, self._errors, self._alive = trt, errors, alive
        self.engine, self.device = engine, device
        self._idle: dict[int, list[_Context]] = {}

    def run(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> None:
        """See `Graph.run`."""
        context = self._take(profile)
        context.bind(inputs, outputs)
        context.enqueue()
        self.give(context)

    def bind(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], profile: int = 0
    ) -> _Bound:
        """See `Graph.bind`."""
        context = self._take(profile)
        context.bind(inputs, outputs)
        return _Bound(context, (dict(inputs), dict(outputs)))

    def close(self) -> None:
        """See `Graph.close`."""
        self._idle.clear()

    def create(self, profile: int) -> Any:
        """A new context without working memory of its own. TensorRT for RTX compiles a shape's kernels at once.

        Else they come later, from another thread, while a step is recorded.
        """
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        kinds = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is None:
            return self.engine.create_execution_context(managed)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        return self.engine.create_execution_context(config)

    def said(self) -> str:
        """TensorRT's last error, as one line."""
        return " ".join(self._errors[-1].split()) if self._errors else "no reason given"

    def give(self, context: _Context) -> None:
        """Takes a context back."""
        context.scratch = None
        self._idle.setdefault(context.profile, []).append(context)

    def _take(self, profile: int) -> _Context:
        idle = self._idle.get(profile)
        return idle.pop() if idle else _Context(self, profile)
