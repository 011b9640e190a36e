"""Weight files that are damaged, misplaced, or of another shape or dtype are refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint_refusals import refused

from models import sparse
from vlkv_export.models import read_checkpoint

QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sparse.write(tmp_path / "checkpoint", sparse.SMALL)


def end_of(entries: dict[str, Any]) -> int:
    """Returns how many bytes of weights a header asks for."""
    return max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")


def edited(folder: Path, **fields: Any) -> None:
    """Writes the weights again with other fields for the first query projection."""
    entries = sparse.header(sparse.SMALL)
    entries[QUERY] = {**entries[QUERY], **fields}
    size = max(
        entry["data_offsets"][1] for name, entry in sparse.header(sparse.SMALL).items() if name[0] != "_"
    )
    sparse.write_weights(folder / "model.safetensors", entries, size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "F99"}, "dtype 'F99', which the format does not have"),
        ({"dtype": 3}, "dtype 3"),
        ({"shape": [16, 15]}, "needs 480 bytes"),
        ({"shape": [-16, -16]}, "shape [-16, -16]; it must be a list of sizes"),
        ({"shape": [2**62] * 40}, "it must be a list of sizes"),
        ({"shape": "16x16"}, "shape '16x16'"),
        ({"shape": [8, 32]}, "has shape [8, 32]; config.json makes it [16, 16]"),
        ({"shape": [256]}, "has shape [256]; config.json makes it [16, 16]"),
        ({"data_offsets": [0, 512]}, "overlaps the tensor before it"),
        ({"data_offsets": [10**9, 10**9 + 512]}, "leaves a gap before it"),
        ({"data_offsets": [512, 0]}, "give -512"),
        ({"data_offsets": [-512, 0]}, "data_offsets [-512, 0]"),
        ({"data_offsets": [2**64, 2**64 + 512]}, "they must be a start and an end"),
        ({"data_offsets": [0]}, "data_offsets [0]"),
        ({"data_offsets": None}, "data_offsets None"),
    ],
)
def test_headers(folder: Path, fields: dict[str, Any], message: str) -> None:
    edited(folder, **fields)
    refused(folder, "model.safetensors", "self_attn.q_proj.weight" if "gap" not in message else "", message)


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("I8", 1)])
def test_dtypes(folder: Path, dtype: str, size: int) -> None:
    sparse.write_weights(folder / "model.safetensors", sparse.header(sparse.SMALL, dtype))
    refused(folder, f"has dtype {dtype}; supported: F32, F16, BF16")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_other_dtypes_are_read(folder: Path, dtype: str) -> None:
    sparse.write_weights(folder / "model.safetensors", sparse.header(sparse.SMALL, dtype))
    dtypes = {tensor.dtype for tensor in read_checkpoint(folder).tensors.values()}
    assert dtypes == {{"F32": "float32", "BF16": "bfloat16"}[dtype]}


def test_files(folder: Path) -> None:
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-100])
    refused(folder, "model.safetensors is truncated: its header says", "bytes of weights, the file has")
    weights.write_bytes(good + b"\0" * 8)
    refused(folder, "is damaged: its header says")
    weights.write_bytes(good[:200])
    refused(folder, "is truncated: its header says", "the file has 200")
    weights.write_bytes(good[:5])
    refused(folder, "is truncated: 5 bytes")
    weights.write_bytes(b"")
    refused(folder, "is truncated: 0 bytes")
    weights.write_bytes(struct.pack("<Q", 100_000_001) + good)
    refused(folder, "its header would have 100000001 bytes; at most 100000000")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refused(folder, "Git LFS pointer", "git lfs pull")
    sparse.write_weights(weights, b"{]")
    refused(folder, "model.safetensors: the header is not valid JSON")
    sparse.write_weights(weights, b"[]")
    refused(folder, "the header holds [], not a JSON object")
    sparse.write_weights(weights, b'{"x": 3}')
    refused(folder, "tensor 'x' has no dtype, shape and data_offsets")
    sparse.write_weights(weights, b"{}")
    refused(folder, "tensors are missing", "the first is vision.")


def test_missing_tensors(folder: Path) -> None:
    entries = sparse.header(sparse.SMALL)
    total = len(entries) - 1
    moved = {("x" + name if "k_proj" in name else name): entry for name, entry in entries.items()}
    sparse.write_weights(folder / "model.safetensors", moved)
    refused(folder, f"4 of {total} tensors are missing", "vision.encoder.layers.0.self_attn.k_proj.weight")
    head = {name.replace("lm_head", "head"): entry for name, entry in entries.items()}
    sparse.write_weights(folder / "model.safetensors", head)
    refused(folder, f"1 of {total} tensors are missing", "the first is lm_head.weight")


def test_biases_against_the_configuration(folder: Path) -> None:
    biased = sparse.changed(sparse.SMALL, text_config={"attention_bias": True})
    sparse.write_weights(folder / "model.safetensors", sparse.header(biased))
    refused(folder, "layers.0.self_attn.q_proj.bias", "config.json says that there is none")
    sparse.dump(folder / "config.json", biased)
    assert read_checkpoint(folder).text.biases == {*"qkvo"}
    sparse.write_weights(folder / "model.safetensors", sparse.header(sparse.SMALL))
    refused(folder, "8 of", "q_proj.bias")


def test_a_tensor_under_two_names(folder: Path) -> None:
    entries = sparse.header(sparse.SMALL)
    end = end_of(entries)
    entries["model.language_model.norm.weight"] = {
        "dtype": "F16",
        "shape": [16],
        "data_offsets": [end, end + 32],
    }
    sparse.write_weights(folder / "model.safetensors", entries)
    refused(folder, "'language_model.model.norm.weight'", "are the same tensor twice")


def test_other_weight_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has neither model.safetensors nor model.safetensors.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "holds PyTorch files", "examples/to_safetensors.py")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../model.safetensors", "'../model.safetensors'; it must be a file of the folder itself"),
        ("/etc/passwd", "'/etc/passwd'; it must be a file of the folder itself"),
        ("a/../../x", "it must be a file of the folder itself"),
        ("sub/x.safetensors", "it must be a file of the folder itself"),
        ("..", "it must be a file of the folder itself"),
        ("", "it must be a file of the folder itself"),
        ("C:x", "it must be a file of the folder itself"),
        ("a\0b", "it must be a file of the folder itself"),
        ("é" * 200, "it must be a file of the folder itself"),
        ("\ud800", "it must be a file of the folder itself"),
        (7, "is in 7; it must be a file of the folder itself"),
        ("gone.safetensors", "'gone.safetensors', which does not exist"),
        ("other.safetensors", "should be in 'other.safetensors', which does not hold it"),
    ],
)
def test_indexes(folder: Path, file: Any, message: str) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    sparse.write_weights(folder / "other.safetensors", b"{}")
    weight_map = dict.fromkeys(list(sparse.header(sparse.SMALL))[1:], "one.safetensors")
    index = folder / "model.safetensors.index.json"
    sparse.dump(index, {"weight_map": weight_map})
    assert read_checkpoint(folder).tensors["lm_head.weight"].file == "one.safetensors"
    index.write_text(json.dumps({"weight_map": {**weight_map, QUERY: file}}))
    refused(folder, "model.safetensors.index.json", QUERY, message)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_indexes_without_a_map(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "model.safetensors.index.json")


def test_a_link_to_the_file_is_read(folder: Path, tmp_path: Path) -> None:
    """The cache of the Hub links every file of a checkpoint to a blob elsewhere."""
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    assert read_checkpoint(folder).tensors
