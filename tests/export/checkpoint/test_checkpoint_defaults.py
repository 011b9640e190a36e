"""Configurations with few fields, tied embeddings, unused tensors, and the size of a real checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_checkpoint import check_config
from transformers import LlavaConfig

from models import sparse
from vlkv_export.models import read_checkpoint


def test_fields_left_out_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(sparse.write(tmp_path, sparse.LLAVA_7B))
    check_config(checkpoint, LlavaConfig(**sparse.LLAVA_7B))
    assert checkpoint.image.tile_features == 576
    assert checkpoint.vision.feature_layers == (23,)
    assert (checkpoint.text.hidden, checkpoint.text.layers, checkpoint.text.head_dim) == (4096, 32, 128)
    assert "vision.encoder.layers.23.mlp.fc1.weight" not in checkpoint.tensors
    assert checkpoint.tokens.pad == 32001 and checkpoint.tokens.eos == (2,)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_no_fields_at_all(tmp_path: Path, architecture: str) -> None:
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 31999,
        "text_config": {"model_type": architecture},
        "vision_config": {},
    }
    folder = tmp_path / "plain"
    folder.mkdir()
    (tmp_path / "none").mkdir()
    sparse.write(folder, sparse.changed(config, vision_config={"image_size": 224}))
    sparse.dump(folder / "config.json", config)
    check_config(read_checkpoint(folder), LlavaConfig(**config))


def test_without_a_vision_config_the_tower_is_llavas(tmp_path: Path) -> None:
    config = {name: value for name, value in sparse.LLAVA_7B.items() if name != "vision_config"}
    sparse.write(tmp_path, sparse.LLAVA_7B)
    sparse.dump(tmp_path / "config.json", config)
    check_config(read_checkpoint(tmp_path), LlavaConfig(**config))


def test_a_7b_is_read_in_under_a_second(tmp_path: Path) -> None:
    folder = sparse.write(tmp_path, sparse.LLAVA_7B)
    weights = folder / "model.safetensors"
    assert weights.stat().st_size > 13e9
    assert weights.stat().st_blocks * 512 < 1e6, "the file should be sparse"
    start = time.perf_counter()
    checkpoint = read_checkpoint(folder)
    seconds = time.perf_counter() - start
    print(f"{len(checkpoint.tensors)} tensors in {seconds:.3f} s")
    assert seconds < 1
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.offset)
    assert last.offset + last.length == weights.stat().st_size


def test_a_tied_head_in_the_files_is_used(tmp_path: Path) -> None:
    """If embedding and head differ in the files, transformers does not tie them either."""
    untied = sparse.write(tmp_path, sparse.SMALL)
    config = sparse.changed(sparse.SMALL, tie_word_embeddings=True)
    sparse.dump(untied / "config.json", config)
    both = read_checkpoint(untied)
    assert not both.text.tied
    assert both.tensors["lm_head.weight"].name == "language_model.lm_head.weight"
    entries = sparse.header(config)
    assert "language_model.lm_head.weight" not in entries
    sparse.write_weights(untied / "model.safetensors", entries)
    tied = read_checkpoint(untied)
    assert tied.text.tied
    assert tied.tensors["lm_head.weight"] == tied.tensors["text.embed_tokens.weight"]


def test_unused_tensors_may_have_any_dtype(tmp_path: Path) -> None:
    folder = sparse.write(tmp_path, sparse.SMALL)
    entries = sparse.header(sparse.SMALL)
    end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    extra = "vision_tower.vision_model.embeddings.position_ids"
    entries[extra] = {"dtype": "I64", "shape": [1, 5], "data_offsets": [end, end + 40]}
    sparse.write_weights(folder / "model.safetensors", entries)
    assert "vision.embeddings.position_ids" not in read_checkpoint(folder).tensors
