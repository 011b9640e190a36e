"""Checkpoints, graphs and engines of the tiny shapes. Each is made on first use, once per session and worker."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from models.steps import prefilled, tolerance  # noqa: F401 (fixtures)
from native_build import driver, emulated, plugin  # noqa: F401 (fixtures)
from vlkv import Engine

if TYPE_CHECKING:
    from models.reference import Reference

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def builder() -> str:
    """The backend whose builder is installed and needs no GPU."""
    for package in ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package} (pip install 'vlkv[tensorrt-rtx]')")
    return "tensorrt-rtx"


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers whose seed a failing test prints; VLKV_SEED repeats one."""
    seed = int(os.environ.get("VLKV_SEED", secrets.randbits(32)))
    print(f"VLKV_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Checkpoint folders by the name of their shape."""
    from models import tiny

    base = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name: tiny.build(name, base / name))


@pytest.fixture(scope="session")
def graphs_of(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Graph directories by the name of their shape."""
    from vlkv_export.directory import export_checkpoint

    base = tmp_path_factory.mktemp("graphs")

    @cache
    def make(name: str) -> Path:
        export_checkpoint(checkpoint_of(name), base / name)
        return base / name

    return make


@pytest.fixture(scope="session")
def built_of(graphs_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Engine directories by shape, operators, weights and the cache's dtype."""
    from vlkv_export.engine import build_engine

    base = tmp_path_factory.mktemp("engines")

    @cache
    def make(
        name: str, operators: str = "native", weights: str = "float32", kv_dtype: str = "float32"
    ) -> Path:
        target = base / f"{name}-{operators}-{weights}-{kv_dtype}"
        build_engine(graphs_of(name), target, operators=operators, weights=weights, kv_dtype=kv_dtype)
        return target

    return make


@pytest.fixture(scope="session")
def engine_of(built_of: Make) -> Callable[..., Engine]:
    """Opened engines by shape, operators, weights and the cache's dtype."""
    return cache(lambda *chosen: Engine.load(built_of(*chosen), threads=1))


@pytest.fixture(scope="session")
def reference_of(checkpoint_of: Make) -> Callable[..., Reference]:
    """The checkpoint in transformers, eager, in float32 or another precision."""
    from models.reference import Reference

    return cache(lambda name, dtype="float32": Reference(checkpoint_of(name), dtype))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two PNG files of coloured noise blown up, of unequal sides."""
    base = tmp_path_factory.mktemp("pictures")
    paths = []
    for seed, size in enumerate(((61, 47), (33, 90))):
        noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
        paths.append(base / f"{seed}.png")
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture
def vlkv(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, standard output, standard error."""
    from vlkv.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), *capfd.readouterr()

    return run
