"""Tokenizer files: the settings that are read from them, and damaged files."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import backend

from vlkv.errors import EngineError
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.storage.manifest import TokenFacts


def save(directory: Path, kind: str = "byte-fallback") -> Path:
    directory.mkdir(exist_ok=True)
    backend(kind).save(str(directory / "tokenizer.json"))
    return directory


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    built = backend("characters")
    built.enable_truncation(3)
    built.enable_padding(length=9)
    built.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode("the total")) == 1 + 9


def test_special_texts_come_from_the_configuration_else_from_ids(tmp_path: Path) -> None:
    facts = TokenFacts(bos=1, eos=(2, 0), pad=-1)
    assert Tokenizer.load(save(tmp_path)).special_tokens == {}
    assert Tokenizer.load(tmp_path, facts).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    config = {
        "eos_token": {"content": "END"},
        "unk_token": None,
        "bos_token": "<b>",
        "image_token": "<image>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "<p>", "bos_token": "<other>"})
    )
    want = {"bos_token": "<b>", "eos_token": "END", "pad_token": "<p>"}
    assert Tokenizer.load(tmp_path, facts).special_tokens == want


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"version": "1.0", "model": {"type": "X"}}', b"[" * 99_999]
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = save(tmp_path) / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(EngineError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: not a tokenizer: ")
    assert str(caught.value).isprintable()


def test_missing_files_and_damaged_configuration(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tokenizer\.json: No such file"):
        Tokenizer.load(tmp_path)
    (save(tmp_path) / "tokenizer_config.json").write_text("{")
    with pytest.raises(EngineError, match=r"tokenizer_config\.json: "):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert Tokenizer.load(tmp_path).special_tokens == {}
    shutil.rmtree(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_engine_errors_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.getbasetemp() / "mutated"
    if not directory.exists():
        save(directory, "words")
        shutil.copy(directory / "tokenizer.json", directory / "good.json")
    content = bytearray((directory / "good.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (directory / "tokenizer.json").write_bytes(content)
    try:
        Tokenizer.load(directory)
    except EngineError as error:
        assert str(error).isprintable()
