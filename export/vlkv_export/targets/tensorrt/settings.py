"""The options of a TensorRT engine, checked against one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from vlkv.errors import EngineError
from vlkv.storage.manifest import DeviceFacts, Manifest
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.ops.attend import HEAD_SIZES, takes_head_size
from vlkv_export.targets.spec import DEFAULT_CHUNK, Settings, within

Caches = Literal["dynamic", "static", "in-place"]
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")
CACHES: tuple[Caches, ...] = ("dynamic", "static", "in-place")
MAX_BATCH = 1024
NO_BFLOAT16 = "7.5"

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Resolved:
    """Complete and checked settings."""

    backend: str
    dtype: Dtype
    operators: str
    plugin: Path | None
    device: DeviceFacts


def resolve(backend: str, settings: Settings, operators: str | None, manifest: Manifest) -> Resolved:
    """Checks the settings and fills in defaults.

    Float32 checkpoints become float16 engines, as TensorRT's fused attention has no float32 kernels.

    Raises:
        EngineError: a value is outside its range, or two values contradict each other.
    """
    own = "bfloat16" if manifest.cache_dtype == "bfloat16" else "float16"
    dtype = _known("dtype", settings.dtype or own, DTYPES)
    if operators is None:
        operators = "functions" if settings.plugin is None else "native"
    _known("operators", operators, ("native", "functions"))
    if operators == "native" and settings.plugin is None and not settings.lower_only:
        raise EngineError(
            f"--operators native on {backend} needs --plugin libvlkv_tensorrt.so; plugin/README.md builds it"
        )
    if settings.plugin is not None and not settings.plugin.is_file():
        raise EngineError(f"--plugin {settings.plugin}: no such file")
    cache = _cache(settings.cache, operators, dtype, manifest.text.head_dim)
    longest = manifest.text.max_positions
    capacity = longest if settings.capacity is None else settings.capacity
    within("capacity", capacity, longest, "the checkpoint's positions")
    within("max-batch", settings.batch, MAX_BATCH, "the limit")
    if settings.chunk < 1:
        raise EngineError(f"--chunk {settings.chunk} is below 1; {DEFAULT_CHUNK} is usual")
    if NO_BFLOAT16 in settings.compute_capabilities and dtype == "bfloat16":
        raise EngineError(f"compute capability {NO_BFLOAT16} has no bfloat16; use --dtype float16")
    device = DeviceFacts(
        compute_capabilities=settings.compute_capabilities,
        capacity=capacity,
        batch=settings.batch,
        chunk=min(settings.chunk, capacity),
        cache=cache,
    )
    return Resolved(backend, dtype, operators, settings.plugin if operators == "native" else None, device)


def _cache(wanted: str | None, operators: str, dtype: str, dim: int) -> Caches:
    """How caches are updated. Raises `EngineError` if `in-place` is requested and the plugin's layer does not fit."""
    obstacles = {
        "--operators native and --plugin": operators != "native",
        "--dtype float16 or bfloat16": dtype == "float32",
        f"a head size that is {HEAD_SIZES}, not {dim}": not takes_head_size(dim),
    }
    missing = [text for text, holds in obstacles.items() if holds]
    if wanted is None:
        return "dynamic" if missing else "in-place"
    cache = _known("cache", wanted, CACHES)
    if cache == "in-place" and missing:
        raise EngineError(f"--cache in-place needs {missing[0]}; dynamic takes any engine")
    return cache


def _known(name: str, value: str, known: tuple[Name, ...]) -> Name:
    for one in known:
        if one == value:
            return one
    raise EngineError(f"unknown --{name} {value!r}; known: {', '.join(known)}")
