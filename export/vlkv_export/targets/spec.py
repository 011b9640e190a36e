"""The interface of a target: a function checks the build options and returns a function that writes the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest
from vlkv_export.watch import Watch

GRAPHS = ("vision", "decoder", "compress")
"""The graphs of a graph directory."""
MERGING = {"compress": False, "compress_merge": True}
"""The two graphs that replace `compress` on a device, and whether each merges evicted tokens."""
PRECISIONS = ("float32", "bfloat16", "fixed16")
"""What `vlkv.native.Linear` rounds its rows to, and the native attention operators what they multiply for prompts; a
precision's place here is the operators' attribute `many`."""
KV_DTYPES = ("float32", "float16", "bfloat16", "int8", "float8")
DEFAULT_CHUNK = 1024
DEFAULT_BATCH = 4


@dataclass(frozen=True)
class Settings:
    """Options of `vlkv build` for a device; None leaves the choice to the target.

    Attributes:
        compute_capabilities: the GPUs to build for, such as "8.9". TensorRT for RTX needs at least one; TensorRT builds
            for the GPU that it runs on.
        dtype: the dtype of the graphs' arithmetic and of the caches.
        capacity: the most slots of a layer's cache.
        batch: the most prompts that decode together.
        chunk: the most prompt tokens of one call.
        cache: `dynamic` takes caches of any capacity and writes new ones; `static` caches have `capacity` slots and are
            updated in place; `in-place` uses the plugin: caches of any capacity, updated in place. None is `in-place`
            if the plugin supports it, else `dynamic`.
        lower_only: write the lowered graphs, for other builders, instead of engines.
        plugin: the path of `libvlkv_tensorrt.so`, if its layers score and evict.
    """

    compute_capabilities: tuple[str, ...] = ()
    dtype: str | None = None
    capacity: int | None = None
    batch: int = DEFAULT_BATCH
    chunk: int = DEFAULT_CHUNK
    cache: str | None = None
    plugin: Path | None = None
    lower_only: bool = False


@dataclass(frozen=True)
class Options:
    """The options of a build.

    Attributes:
        operators: `native` or `functions`; None leaves the choice to the target.
        weights: one of `weights.registry.FORMATS`; None keeps the checkpoint's dtype.
        prompt_precision: one of `PRECISIONS`, for products; None leaves the choice to the target.
        kv_dtype: one of `KV_DTYPES`, of the KV cache; None leaves the choice to the target.
        settings: the options of a device.
        link: whether weights that are taken as they are may be hard links, not copies of the engine's own.
        passes: those of `vlkv.storage.passes.OPTIONAL_PASSES` that run, in their order; None is all in the usual one.
    """

    operators: str | None = None
    weights: str | None = None
    prompt_precision: str | None = None
    kv_dtype: str | None = None
    settings: Settings = field(default_factory=Settings)
    link: bool = False
    passes: tuple[str, ...] | None = None


Write = Callable[[Path, Path, dict[str, ir.Model], Watch], dict[str, Any]]
"""Lowers the graphs, and writes them and their weights.

Its arguments are the graph directory, the folder to write into, the graphs by name (changed in place) and the
progress callbacks. It returns the fields of the manifest that differ from the graph directory's.
"""

Prepare = Callable[[str, Options, Manifest], Write]
"""Checks the options for the target of that name, before anything is written.

Raises `EngineError` for an option that the target does not support, or if its builder is missing.
"""


def within(name: str, value: int, limit: int, what: str) -> None:
    """Raises `EngineError`, which names the option and its limit, unless the value is in 1..limit."""
    if not 1 <= value <= limit:
        raise EngineError(f"--{name} {value} is outside 1..{limit} ({what})")
