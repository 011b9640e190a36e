"""A stand-in for TensorRT's Python module: contexts with TensorRT's rules, and ONNX Runtime in the engine's place.

An engine's file is JSON: the lowered ONNX file, and the shape ranges of the profiles. Names, and what they take, are
those of the real module; rules that are broken stand in the driver's `broken`.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from backend.cuda_stand_in import OK, Graph, StandIn, Work
from models import onnx_runs

ALIGNED = {"key": 16, "value": 16, "other": 4}
SCRATCH = 1 << 12
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
SHAPE_INPUTS = {"capacity"}
"""Inputs that give another its size: TensorRT reads them on the host."""


class ILogger:
    ERROR = 1

    def __init__(self) -> None:
        pass


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class CudaGraphStrategy(Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class ICudaEngine:
    def __init__(self, module: Module, log: Any, facts: dict[str, Any]) -> None:
        self.module, self.log, self.name = module, log, facts["name"]
        self.profiles: list[dict[str, list[list[int]]]] = facts["profiles"]
        self.in_place = facts["cache"] != "dynamic"
        self.session = onnx_runs.session(Path(facts["onnx"]))
        self.inputs = {value.name: DTYPES[value.type] for value in self.session.get_inputs()}
        self.outputs = {value.name: DTYPES[value.type] for value in self.session.get_outputs()}

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH * (profile_index + 1)

    def create_execution_context(self, given: Any) -> IExecutionContext | None:
        if self.module.driver.capturing() is not None:
            self.module.driver.broken.append("a context was created while a stream records")
        strategy = given.strategy if isinstance(given, IRuntimeConfig) else given
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(given, IRuntimeConfig):
            # lazy ones are compiled behind the caller's back, and allocate while a stream records
            assert given.dynamic_shapes_kernel_specialization_strategy is not (
                DynamicShapesKernelSpecializationStrategy.LAZY
            )
        self.module.contexts += 1
        return IExecutionContext(self)


class Recorded:
    """Tells a context which graph holds its call."""

    def __init__(self, context: IExecutionContext) -> None:
        self.recorded = context.graphs.append


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.profile = engine, 0
        self.graphs: list[Graph] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.runs = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._change("set_optimization_profile_async")
        if not 0 <= profile_index < len(self.engine.profiles):
            return self._say(f"no profile {profile_index}")
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._change("set_input_shape")
        if name not in self.engine.inputs:
            return self._say(f"no input {name}")
        least, _, most = self.engine.profiles[self.profile][name]
        if name in SHAPE_INPUTS:
            least = most = []
        inside = len(shape) == len(least) and all(
            a <= n <= b for a, n, b in zip(least, shape, most, strict=True)
        )
        if not inside:
            return self._say(f"{name} of shape {list(shape)} is outside the profile, {least} to {most}")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._change("set_tensor_address")
        kind = name.removeprefix("new_").split("_")[0]
        if name not in SHAPE_INPUTS and memory % ALIGNED.get(kind, ALIGNED["other"]):
            self._break(f"{name} at {memory:#x} is not aligned")
        if name not in self.engine.inputs | self.engine.outputs:
            return self._say(f"no tensor {name}")
        self.addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._change("set_device_memory")
        if memory % 256 or size < self.engine.get_device_memory_size_for_profile_v2(self.profile):
            self._break(f"working memory of {size} bytes at {memory:#x}")
        self.memory = (memory, size)

    def infer_shapes(self) -> list[str]:
        names = [*self.engine.inputs, *self.engine.outputs]
        return [
            n for n in names if n not in self.addresses or (n in self.engine.inputs and n not in self.shapes)
        ]

    def is_stream_capturable(self, stream: int) -> bool:
        return self.memory[1] > 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._change("execute_async_v3")
        engine, driver = self.engine, self.engine.module.driver
        if driver.capturing() is not None and not self.runs:
            self._break("a context's first run was recorded; it compiles and allocates")
        self.runs += 1
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        host = {}
        for name in SHAPE_INPUTS & engine.inputs.keys():
            host[name] = _array(addresses[name], shapes[name], engine.inputs[name]).copy()
        sizes = self._output_shapes(host)
        touches = [(*self.memory, "device")]
        for name, shape in (shapes | sizes).items():
            dtype = (engine.inputs | engine.outputs)[name]
            if name not in host:
                touches.append((addresses[name], int(np.prod(shape)) * np.dtype(dtype).itemsize, "device"))
        for name in engine.outputs:
            if name.startswith(("new_key_cache", "new_value_cache")):
                same = addresses[name] == addresses[name.removeprefix("new_")]
                if same != engine.in_place and int(np.prod(sizes[name])):
                    self._break(f"{name} {'shares' if same else 'does not share'} memory with its input")

        def run() -> None:
            feeds = {
                name: host[name] if name in host else _array(addresses[name], shapes[name], dtype).copy()
                for name, dtype in engine.inputs.items()
            }
            found = engine.session.run(list(engine.outputs), feeds)
            ctypes.memset(self_memory[0], 0xA5, self_memory[1])
            for (name, dtype), result in zip(engine.outputs.items(), found, strict=True):
                assert result.shape == sizes[name], (name, result.shape, sizes[name])
                _array(addresses[name], sizes[name], dtype)[...] = result

        self_memory = self.memory
        work = Work(run, touches, Recorded(self))
        return driver.enqueue(stream_handle, f"TensorRT {engine.name}", work) == OK

    def _output_shapes(self, host: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes by the symbols that the inputs' shapes and values give; caches have their inputs'."""
        known: dict[str, int] = {}
        for value in self.engine.session.get_inputs():
            for symbol, size in zip(value.shape, self.shapes[value.name], strict=True):
                if isinstance(symbol, str):
                    known[symbol] = size
            if value.name in host:
                known[value.name] = int(host[value.name])
        found = {}
        for value in self.engine.session.get_outputs():
            source = value.name.removeprefix("new_")
            if source != value.name and source in self.shapes and "cache" in source:
                found[value.name] = self.shapes[source]
                continue
            found[value.name] = tuple(s if isinstance(s, int) else known[s] for s in value.shape)
        return found

    def _change(self, call: str) -> None:
        if any(not graph.destroyed for graph in self.graphs):
            self._break(f"{call} on a context whose graph is alive")

    def _break(self, rule: str) -> None:
        self.engine.module.driver.broken.append(f"TensorRT {self.engine.name}: {rule}")

    def _say(self, text: str) -> bool:
        self.engine.log.log(ILogger.ERROR, text)
        return False


class Registry:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load_library(self, path: str) -> None:
        self.loaded.append(path)


class Module:
    """What `import tensorrt_rtx` gives: a context with `rtx`, else TensorRT's own, has no runtime configuration."""

    __version__ = "stand-in"

    def __init__(self, driver: StandIn, rtx: bool = True) -> None:
        self.driver, self.contexts, self.registry = driver, 0, Registry()
        self.ILogger = ILogger
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
            self.CudaGraphStrategy = CudaGraphStrategy

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        module = self

        class Runtime:
            def get_plugin_registry(self) -> Registry:
                return module.registry

            def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
                try:
                    return ICudaEngine(module, log, json.loads(data))
                except ValueError:
                    log.log(ILogger.ERROR, "the engine plan file is not compatible with this version")
                    return None

        return Runtime()


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape))
    if not size:
        return np.zeros(shape, dtype)
    memory = (ctypes.c_byte * (size * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(memory, dtype, size).reshape(shape)
