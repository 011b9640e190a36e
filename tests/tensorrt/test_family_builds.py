"""Builds TensorRT for RTX engines of every family's graphs without a GPU."""

from __future__ import annotations

import pytest

from models import families
from vlkv.storage.manifest import read, vision_graphs
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine
from vlkv_export.targets.tensorrt.settings import Settings

CHOSEN = (
    "llava-clip-gemma",
    "llava-pixtral-mistral",
    "onevision",
    "next-video-average",
    "next-video-conv",
    "video-llava",
)
"""What has nodes of its own: a scaled norm, pictures of any size, a newline, pooled frames, a tower of frames.

A build takes seconds.
"""


@pytest.mark.parametrize("name", CHOSEN)
def test_builds(name, builder, tmp_path):
    checkpoint = families.build(name, tmp_path / "checkpoint")
    export_checkpoint(checkpoint, tmp_path / "graphs")
    settings = Settings(compute_capabilities=("8.9",), capacity=256, chunk=64)
    build_engine(tmp_path / "graphs", tmp_path / "engine", builder, settings=settings)
    facts = read(tmp_path / "engine")
    source = read(tmp_path / "graphs")
    assert facts.kind == "engine" and (facts.image, facts.video) == (source.image, source.video)
    assert {"decoder.engine", "compress.engine"} <= set(facts.files)
    assert {f"{name}.engine" for name in vision_graphs(source)} <= set(facts.files)
