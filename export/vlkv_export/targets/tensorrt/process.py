"""Starts the builder's process with the libraries that it needs, and reads its reports until it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkv.errors import EngineError
from vlkv_export.targets.tensorrt import worker

LIBRARY = "libtensorrt_rtx.so"
EXTRAS = {"tensorrt-rtx": "vlkv[tensorrt-rtx]", "tensorrt": "vlkv[tensorrt]"}


@dataclass
class Built:
    """The process's report.

    Attributes:
        version: the version of TensorRT.
        capabilities: the compute capabilities that it can build for.
        graphs: per graph the engine's `bytes`, its `plugins` (names of their layers), the number of layers by `kinds`,
            and rank and type of its `outputs`.
    """

    version: str = ""
    capabilities: list[str] = field(default_factory=list)
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)


def build(
    backend: str,
    plugin: Path | None,
    capabilities: tuple[str, ...] = (),
    graphs: list[dict[str, Any]] | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> Built:
    """Builds engines; without graphs it only returns the builder's version and capabilities.

    Args:
        backend: `tensorrt` or `tensorrt-rtx`.
        plugin: the plugin to load.
        capabilities: compute capabilities to build for; empty means the machine's own.
        graphs: for each graph a `name`, the paths `onnx` and `engine`, and `profiles`.
        report: called with the name of each step.

    Raises:
        EngineError: TensorRT is not installed, or the builder reported an error, aborted or crashed.
    """
    if not any(importlib.util.find_spec(name) for name in worker.MODULES[backend]):
        raise EngineError(
            f"--backend {backend}: no package {worker.MODULES[backend][0]}; pip install '{EXTRAS[backend]}'"
        )
    job = {
        "backend": backend,
        "plugin": str(plugin.resolve()) if plugin else None,
        "capabilities": capabilities,
        "graphs": graphs or [],
    }
    done = Built()
    step = "starting"
    with _environment() as environment, tempfile.TemporaryFile("w+", errors="replace") as noise:
        command = [sys.executable, "-m", worker.__name__]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment
        ) as process:
            try:
                assert process.stdin is not None and process.stdout is not None  # both are pipes
                process.stdin.write(json.dumps(job))
                process.stdin.close()
                for line in process.stdout:
                    fact = _fact(line)
                    if "error" in fact:
                        raise EngineError(f"--backend {backend}: {fact['error']}")
                    if "step" in fact:
                        step = fact["step"]
                        report(step)
                    elif "version" in fact:
                        done.version, done.capabilities = fact["version"], fact["capabilities"]
                    elif "built" in fact:
                        done.graphs[fact.pop("built")] = fact
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            noise.seek(0)
            lines = [line.strip() for line in noise if line.strip()]
            ended = (
                f"ended with status {process.returncode}"
                if process.returncode > 0
                else f"crashed (signal {-process.returncode})"
            )
            raise EngineError(
                f"--backend {backend}: the builder {ended} while {step}: {(lines or ['it said nothing'])[-1]}"
            )
    return done


def _fact(line: str) -> dict[str, Any]:
    """Parses a line of the worker; lines that libraries print are ignored."""
    try:
        fact = json.loads(line)
    except ValueError:
        return {}
    return fact if isinstance(fact, dict) else {}


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    """The environment, with a folder on the linker's path in which the library has the name that the parser opens.

    The parser of TensorRT for RTX opens `libtensorrt_rtx.so` at the first plugin node; the wheel has that file only
    under a name with the version number.
    """
    environment = dict(os.environ)
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    found = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    versioned = sorted(path for place in found for path in place.glob(f"{LIBRARY}.*"))
    with tempfile.TemporaryDirectory(prefix="vlkv-") as folder:
        if versioned:
            (Path(folder) / LIBRARY).symlink_to(versioned[-1])
            paths = [folder, *filter(None, [environment.get("LD_LIBRARY_PATH")])]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        yield environment
