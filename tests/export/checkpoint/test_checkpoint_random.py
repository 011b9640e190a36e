"""Randomly changed checkpoints are read, or refused by a `CheckpointError` of one line; nothing else happens."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models import sparse
from vlkv.errors import CheckpointError
from vlkv_export.checkpoint import Checkpoint
from vlkv_export.models import read_checkpoint

SETTINGS = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(SETTINGS, max_examples=150)
NUMBERS = (
    st.integers(-3, 40)
    | st.integers()
    | st.sampled_from([2**31, 2**53, 2**63, 10**400, -(10**400)])
    | st.floats()
    | st.sampled_from([1e-300, 1e300, 0.0, -0.0])
)
WORDS = st.sampled_from(
    ["llama", "mistral", "gelu", "yarn", "llama3", "dynamic", "longrope", "default", "full", "F16", "I64", ""]
)
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8)
KEYS = st.sampled_from(
    [
        "rope_scaling",
        "rope_parameters",
        "type",
        "rope_type",
        "factor",
        "head_dim",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "attention_factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "rope_theta",
        "sliding_window",
        "partial_rotary_factor",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "quantization_config",
        "image_token_id",
        "dtype",
        "eos_token_id",
        "size",
        "crop_size",
        "shortest_edge",
        "height",
        "width",
        "image_mean",
        "do_pad",
        "chat_template",
        "name",
        "template",
        "id",
        "content",
        "added_tokens",
        "image_processor",
        "weight_map",
        "shape",
        "data_offsets",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path to every value inside `value`."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def change(value: Any, data: st.DataObject) -> Any:
    """Changes, drops or adds one to three values anywhere inside."""
    value = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        ways = list(places(value))
        *way, last = data.draw(st.sampled_from(ways), label="place") if ways else ("new",)
        target = value
        for key in way:
            target = target[key]
        action = data.draw(st.sampled_from(["set", "set", "drop", "add"]), label="action")
        if action == "drop" and ways:
            del target[last]
        elif action == "add" and isinstance(target, dict):
            target[data.draw(KEYS, label="key")] = data.draw(VALUES, label="value")
        else:
            target[last] = data.draw(VALUES, label="value")
    return value


def check(folder: Path) -> Checkpoint | None:
    """Reads the folder. It may only fail with a `CheckpointError` of one line."""
    try:
        checkpoint = read_checkpoint(folder)
    except CheckpointError as error:
        line = str(error)
        assert line and len(line.splitlines()) == 1, line
        assert len(line) < 1000, line
        line.encode()
        return None
    assert checkpoint.text.max_positions > 0 and checkpoint.text.rope.inv_freq.shape[0] > 0
    assert 0 <= checkpoint.image.token_id < checkpoint.text.vocab
    for tensor in checkpoint.tensors.values():
        assert tensor.offset + tensor.length <= (folder / tensor.file).stat().st_size
    return checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse.write(tmp_path_factory.mktemp("random") / "checkpoint", sparse.SMALL)


@pytest.fixture(autouse=True)
def good(folder: Path) -> Iterator[None]:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield
    for path in folder.iterdir():
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def test_the_unchanged_one_is_read(folder: Path) -> None:
    assert check(folder) is not None


@MANY
@given(data=st.data())
def test_configuration(folder: Path, data: st.DataObject) -> None:
    sparse.dump(folder / "config.json", change(sparse.SMALL, data))
    check(folder)


@settings(MANY, max_examples=100)
@given(values=st.dictionaries(KEYS, VALUES, max_size=8), kind=st.sampled_from(["llama3", "yarn", "linear"]))
def test_rope(folder: Path, values: dict[str, Any], kind: str) -> None:
    text = {"rope_scaling": {"factor": 2.0, **values, "rope_type": kind}}
    sparse.dump(folder / "config.json", sparse.changed(sparse.SMALL, text_config=text))
    check(folder)


@MANY
@given(data=st.data())
def test_header(folder: Path, data: st.DataObject) -> None:
    entries = change(sparse.header(sparse.SMALL), data)
    raw = json.dumps(entries).encode()
    sparse.write_weights(folder / "model.safetensors", raw, data.draw(st.sampled_from([15736, 0, 10**6])))
    check(folder)


@settings(MANY, max_examples=100)
@given(data=st.data())
def test_index(folder: Path, data: st.DataObject) -> None:
    names = [name for name in sparse.header(sparse.SMALL) if name != "__metadata__"]
    if (folder / "model.safetensors").exists():
        (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = {"weight_map": dict.fromkeys(names, "one.safetensors")}
    sparse.dump(folder / "model.safetensors.index.json", change(index, data))
    check(folder)


@settings(MANY, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
        ),
        ("processor_config.json", {"image_processor": {"size": 28, "crop_size": 28}, "chat_template": "x"}),
        ("tokenizer.json", {"added_tokens": [{"id": 9, "content": "<image>"}]}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "x"}]}),
        ("generation_config.json", {"eos_token_id": [2, 3], "bos_token_id": 1, "pad_token_id": 0}),
    ],
)
def test_other_files(folder: Path, name: str, value: Any, data: st.DataObject) -> None:
    sparse.dump(folder / name, change(value, data))
    check(folder)


@MANY
@given(data=st.data())
def test_bytes(folder: Path, data: st.DataObject) -> None:
    """Flips, cuts and inserts bytes in any file."""
    path = data.draw(st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"]), label="file")
    saved = (folder / path).read_bytes()
    content = bytearray(saved)
    end = min(len(content), 9000)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        place = data.draw(st.integers(0, end - 1), label="place")
        action = data.draw(st.sampled_from(["flip", "flip", "insert", "cut"]), label="action")
        if action == "flip" and place < len(content):
            content[place] = data.draw(st.integers(0, 255), label="byte")
        elif action == "insert":
            content[place:place] = data.draw(st.binary(max_size=6), label="bytes")
        else:
            del content[place:]
    (folder / path).write_bytes(content)
    try:
        check(folder)
    finally:
        (folder / path).write_bytes(saved)


@MANY
@given(content=st.binary(max_size=64), prefix=st.booleans())
@example(content=b"[" * 60, prefix=True)
def test_rubbish(folder: Path, content: bytes, prefix: bool) -> None:
    start = struct.pack("<Q", len(content)) if prefix else b""
    (folder / "model.safetensors").write_bytes(start + content)
    assert check(folder) is None


@pytest.mark.parametrize("name", ["\x1e", "\u2028", "n" * 2000, ""])
def test_a_strange_name_of_a_size_is_one_line(folder: Path, name: str) -> None:
    path = folder / "preprocessor_config.json"
    before = path.read_text() if path.exists() else None
    try:
        path.write_text(json.dumps({"size": {name: False}, "crop_size": {"height": 28, "width": 28}}))
        assert check(folder) is None
    finally:
        path.unlink() if before is None else path.write_text(before)
