"""Builds TensorRT for RTX engines of every family's graphs without a GPU."""

from __future__ import annotations

import pytest

from models import families
from vlkv.storage.manifest import read
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine
from vlkv_export.targets.tensorrt.settings import Settings

CHOSEN = ("llava-clip-gemma", "llava-pixtral-mistral", "onevision")
"""Families with nodes of their own: a scaled norm, pictures of any size, a newline. A build takes seconds."""


@pytest.mark.parametrize("name", CHOSEN)
def test_builds(name, builder, tmp_path):
    checkpoint = families.build(name, tmp_path / "checkpoint")
    export_checkpoint(checkpoint, tmp_path / "graphs")
    settings = Settings(compute_capabilities=("8.9",), capacity=256, chunk=64)
    build_engine(tmp_path / "graphs", tmp_path / "engine", builder, settings=settings)
    facts = read(tmp_path / "engine")
    assert facts.kind == "engine" and facts.image == read(tmp_path / "graphs").image
    assert {"vision.engine", "decoder.engine", "compress.engine"} <= set(facts.files)
