"""Configurations of published checkpoints open, and their greedy tokens are those of transformers."""

from __future__ import annotations

import shutil

import pytest

from models import families, published
from vlkv import Engine, Question
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

STEPS = 16
PROMPTS = [
    ("what is the total", []),
    ("<image> what is the total", ["wide"]),
    ("w0 <image> and <image> total", ["odd", "tall"]),
]


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_answers_are_those_of_transformers(name, tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, name, published.family(name))
    folder = published.build(name, tmp_path / "checkpoint")
    export_checkpoint(folder, tmp_path / "graphs")
    build_engine(tmp_path / "graphs", tmp_path / "engine")
    engine, reference = Engine.load(tmp_path / "engine", threads=1), families.Reference(name, folder)
    questions, wanted = [], []
    for text, names in PROMPTS:
        pictures = [families.picture(each) for each in names]
        wanted.append(reference.generate(reference.inputs(text, pictures), STEPS))
        questions.append(Question(text, pictures, raw=True, policy="full", max_new_tokens=STEPS))
    assert [result.token_ids for result in engine.generate_batch(questions)] == wanted
    shutil.rmtree(tmp_path)
