"""Phi-3's configuration and its fused matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models import families
from vlkv.errors import CheckpointError
from vlkv_export.models import read_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava-clip-phi3", tmp_path_factory.mktemp("phi3"))


def edited(folder: Path, copy: Path, **text: Any) -> Path:
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= text
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_parts_follow_each_other_in_the_file(folder: Path) -> None:
    tensors = read_checkpoint(folder).tensors
    for layer in range(2):
        name = f"text.layers.{layer}"
        query, key, value = (tensors[f"{name}.self_attn.{part}_proj.weight"] for part in "qkv")
        assert [part.shape for part in (query, key, value)] == [(64, 64), (32, 64), (32, 64)]
        assert {part.name.rsplit(".", 2)[1] for part in (query, key, value)} == {"qkv_proj"}
        assert key.offset == query.offset + query.length and value.offset == key.offset + key.length
        gate, up = (tensors[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        assert gate.shape == up.shape == (96, 64) and up.offset == gate.offset + gate.length


def test_positions_end_where_long_frequencies_would_begin(folder: Path) -> None:
    assert read_checkpoint(folder).text.max_positions == 512


OLD = {"rope_parameters": None, "rope_theta": 10000.0}
SHORT = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_older_names_of_longrope(kind: str, folder: Path, tmp_path: Path) -> None:
    text = {**OLD, "rope_scaling": {"type": kind, **SHORT}, "original_max_position_embeddings": None}
    found = read_checkpoint(edited(folder, tmp_path / "old", **text)).text
    assert found.max_positions == found.rope.positions == 4096


def test_default_rope_and_a_window(folder: Path, tmp_path: Path) -> None:
    found = read_checkpoint(edited(folder, tmp_path / "plain", **OLD, sliding_window=100)).text
    assert found.rope.positions is None


def test_partial_rotation_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor 0\.75 is not supported"):
        read_checkpoint(edited(folder, tmp_path / "partial", **OLD, partial_rotary_factor=0.75))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"num_key_value_heads": 4}, r"qkv_proj.weight' has shape \[128, 64\]; .* 192 rows: 64 \+ 64 \+ 64"),
        ({"intermediate_size": 95}, r"gate_up_proj.weight' has shape \[192, 64\]; .* 190 rows: 95 \+ 95"),
    ],
)
def test_fused_matrices_of_another_shape(
    text: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(edited(folder, tmp_path / "other", **text))
