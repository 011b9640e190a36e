"""The builder's process: reads a job from standard input, and writes one line of JSON per event.

It is a separate process because the dynamic linker reads LD_LIBRARY_PATH only when a process starts, and because a
failing builder may abort or crash.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
BAD_PROFILE = "not self-consistent"
"""Part of a warning of the builder: the engine would refuse shapes of its own profile."""
NO_GPU = "cudaError 35"
"""Part of errors that follow other errors on a machine without a GPU and add no information."""


class BuildError(Exception):
    """An error that is reported to the parent process."""


def say(**fact: object) -> None:
    """Writes a line of JSON."""
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def bindings(backend: str) -> Any:
    """TensorRT's module for a backend."""
    reasons = []
    for name in MODULES[backend]:
        try:
            module = importlib.import_module(name)
            if hasattr(module, "Builder"):
                return module
            reasons.append(f"{name} has no builder")
        except ImportError as error:
            reasons.append(str(error))
    raise BuildError("; ".join(reasons))


class Session:
    """A builder, its log, and the plugin if there is one."""

    def __init__(self, backend: str, plugin: str | None) -> None:
        self.trt = trt = bindings(backend)
        problems: list[str] = []

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity <= trt.ILogger.ERROR or BAD_PROFILE in text:
                    problems.append(text)

        self.problems, self._log = problems, Log()
        self.builder = trt.Builder(self._log)
        if plugin:
            self._load(plugin)

    def _load(self, plugin: str) -> None:
        say(step="loading the plugin")
        registry = self.builder.get_plugin_registry()
        try:
            handle = registry.load_library(plugin)
        except Exception as error:
            raise BuildError(f"{plugin} can't be loaded: {error}") from error
        names = {creator.name for creator in registry.all_creators}
        if handle is None or not {"VlkvScore", "VlkvEvict", "VlkvAttend"} <= names:
            raise BuildError(f"{plugin} is not vlkv's plugin: {self.said() or 'it has no plugin creators'}")

    def said(self) -> str:
        """The log's errors as one line; the log is emptied."""
        text = "; ".join(dict.fromkeys(problem for problem in self.problems if NO_GPU not in problem))
        self.problems.clear()
        return re.sub(r"\s+", " ", text)[:1000]

    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities that can be built for, such as "8.9"; empty if only the machine's own can."""
        kinds = getattr(self.trt, "ComputeCapability", None)
        members = dict(kinds.__members__) if kinds is not None else {}
        return {
            f"{name[2:-1]}.{name[-1]}": kind for name, kind in members.items() if re.match(r"SM\d+$", name)
        }

    def build(self, graph: dict[str, Any], capabilities: list[str]) -> None:
        """Builds one engine file from an ONNX file."""
        trt = self.trt
        network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._log)
        parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        if not parser.parse_from_file(graph["onnx"]):
            errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            reason = re.sub(r"\s+", " ", errors.split("[checkMacros")[0]).strip()
            raise BuildError(f"the parser refuses {graph['name']}: {reason or self.said()}")
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        for layer in layers:
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer
                layer.attention.decomposable = True
        config = self.builder.create_builder_config()
        # no TF32: its 10 bits of fraction are too few for RoPE's angles, which are products of positions
        config.clear_flag(trt.BuilderFlag.TF32)
        # TensorRT for RTX: the caller gives all working memory, without which no stream can record a run
        given = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if given is not None:
            config.set_flag(given)
        # the plugin's VlkvAttend writes caches where they are
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if capabilities:
            config.num_compute_capabilities = len(capabilities)
            for index, name in enumerate(capabilities):
                config.set_compute_capability(self.capabilities()[name], index)
        for shapes in graph["profiles"]:
            config.add_optimization_profile(self._profile(network, shapes))
        engine = self.builder.build_serialized_network(network, config)
        said = self.said()
        if engine is None or BAD_PROFILE in said:
            raise BuildError(f"the builder refuses {graph['name']}: {said or 'it gives no reason'}")
        Path(graph["engine"]).write_bytes(engine)
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        say(
            built=graph["name"],
            bytes=engine.nbytes,
            plugins=[layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3],
            kinds=dict(Counter(layer.type.name for layer in layers)),
            tf32=config.get_flag(trt.BuilderFlag.TF32),
            user_allocation=given is not None and config.get_flag(given),
            outputs={tensor.name: [len(tensor.shape), tensor.dtype.name] for tensor in outputs},
        )

    def _profile(self, network: Any, shapes: dict[str, list[list[int]]]) -> Any:
        profile = self.builder.create_optimization_profile()
        for tensor in (network.get_input(index) for index in range(network.num_inputs)):
            if tensor.is_shape_tensor:
                profile.set_shape_input(tensor.name, *shapes[tensor.name])
            elif tensor.name == "capacity":
                profile.set_shape(tensor.name, (), (), ())
            else:
                profile.set_shape(tensor.name, *shapes[tensor.name])
        return profile


def main() -> None:
    """Runs the job: reports the builder's capabilities, then builds the graphs one by one."""
    job = json.load(sys.stdin)
    try:
        session = Session(job["backend"], job["plugin"])
        say(version=session.trt.__version__, capabilities=sorted(session.capabilities(), key=float))
        for graph in job["graphs"]:
            say(step=f"building {graph['name']}")
            session.build(graph, job["capabilities"])
    except BuildError as failure:
        say(error=str(failure))


if __name__ == "__main__":
    main()
