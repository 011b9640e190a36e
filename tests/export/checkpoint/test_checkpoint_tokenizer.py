"""Tokenizers whose image token is only in the configuration or the vocabulary, and sentencepiece's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from models import families, tiny
from vlkv import Engine, Question
from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.tokenizer import AddedTokens
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

DATA = Path(__file__).parent / "data"
IMAGE = tiny.SPECIAL.index("<image>")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    families.tokenizer().save_pretrained(folder)
    return folder


def without_image(saved: Path, folder: Path, vocabulary: bool, **config: Any) -> Path:
    """A copy without the added token `<image>`; in the vocabulary, where it is kept there, its id is the same."""
    shutil.copytree(saved, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<image>"
    ]
    if not vocabulary:
        vocab = tokenizer["model"]["vocab"]
        del vocab["<image>"]
        tokenizer["model"]["vocab"] = {text: number for number, text in enumerate(vocab)}
        for token in tokenizer["added_tokens"]:
            token["id"] = tokenizer["model"]["vocab"].get(token["content"], token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


DECODER = {"content": "<image>", "special": True, "lstrip": False}


@pytest.mark.parametrize(
    ("vocabulary", "config", "token_id"),
    [
        (True, {}, IMAGE),
        (True, {"additional_special_tokens": ["<image>"]}, IMAGE),
        (False, {"added_tokens_decoder": {"63": DECODER}}, tiny.VOCAB - 1),
        (False, {"additional_special_tokens": ["<image>"]}, tiny.VOCAB - 1),
        (False, {"extra_special_tokens": {"image_token": "<image>"}}, tiny.VOCAB - 1),
        (False, {"image_token": "<image>"}, tiny.VOCAB - 1),
    ],
)
def test_an_image_token_that_is_not_among_the_added(
    vocabulary: bool, config: dict[str, Any], token_id: int, saved: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = without_image(saved, tmp_path / "copy", vocabulary, **config)
    added = AddedTokens(folder)
    assert added.image_token(token_id) == "<image>"
    assert added.written is not None and "tokenizer.json" not in added.files(folder)
    mine = Tokenizer.from_str(added.written.decode())
    ids = mine.encode("what <image> is").ids
    assert ids.count(token_id) == 1
    if config:  # transformers does not look into the vocabulary
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
        )
        assert AutoTokenizer.from_pretrained(folder)("what <image> is")["input_ids"] == ids


def test_a_tokenizer_that_lacks_nothing_is_taken_as_it_is(saved: Path) -> None:
    added = AddedTokens(saved)
    assert added.written is None
    assert added.files(saved) == ("tokenizer.json", "tokenizer_config.json")


def test_tokens_of_the_configuration_keep_their_order(saved: Path, tmp_path: Path) -> None:
    decoder = {
        "65": {"content": "b"},
        "64": {"content": "[a]", "special": False},
        "4": {"content": "<image>"},
    }
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    texts = AddedTokens(folder).texts
    assert (texts[64], texts[IMAGE]) == ("[a]", "<image>")


@pytest.mark.parametrize(
    "config", [{"added_tokens_decoder": {"x": {"content": "a"}}}, {"added_tokens_decoder": {"70": 7}}]
)
def test_added_tokens_that_are_wrong(config: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="added_tokens_decoder"):
        AddedTokens(folder)


def test_no_token_of_that_id(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no added token of id 999"):
        AddedTokens(saved).image_token(999)


def test_answers_with_an_image_token_of_the_vocabulary(saved: Path, tmp_path: Path) -> None:
    """The written tokenizer goes on into graphs and engine; answers are those of the checkpoint with an added token."""
    folder = families.build("llava-siglip-qwen2", tmp_path / "checkpoint")
    tokens = []
    for number in range(2):
        export_checkpoint(folder, tmp_path / f"graphs{number}")
        build_engine(tmp_path / f"graphs{number}", tmp_path / f"engine{number}")
        engine = Engine.load(tmp_path / f"engine{number}", threads=1)
        question = Question("what is <image>", [families.picture("wide")], policy="full", max_new_tokens=8)
        tokens.append(engine.generate_batch([question])[0].token_ids)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        without_image(saved, tmp_path / f"vocabulary{number}", vocabulary=True)
        shutil.copytree(tmp_path / f"vocabulary{number}", folder, dirs_exist_ok=True)
    assert tokens[0] == tokens[1]


def pieces(folder: Path, **config: Any) -> Path:
    """A folder with `tokenizer.model`: byte-pair encoding of 480 pieces, made by sentencepiece 0.2.3."""
    folder.mkdir(exist_ok=True)
    shutil.copy(DATA / "pieces.model", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def converted(folder: Path) -> Tokenizer:
    added = AddedTokens(folder)
    assert added.written is not None
    return Tokenizer.from_str(added.written.decode())


def test_ids_are_sentencepieces(tmp_path: Path) -> None:
    """`pieces.json` holds texts and the ids that sentencepiece gives them."""
    tokenizer = converted(pieces(tmp_path))
    for text, ids in json.loads((DATA / "pieces.json").read_text()):
        # control tokens are tokens in a text here; sentencepiece has no space behind what was defined by its user
        if "<s>" not in text and "[mark]" not in text:
            assert tokenizer.encode(text).ids == [1, *ids], text
            assert tokenizer.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize("legacy", [True, False])
def test_behind_a_special_token(legacy: bool, tmp_path: Path) -> None:
    tokenizer = converted(pieces(tmp_path, legacy=legacy))
    texts = [piece for piece in tokenizer.encode("the picture</s>the picture").tokens if piece != "<s>"]
    first, second = texts[: texts.index("</s>")], texts[texts.index("</s>") + 1 :]
    assert (second == first) == legacy and "".join(second).startswith("\u2581") == legacy


def test_no_space_before_a_text(tmp_path: Path) -> None:
    tokenizer = converted(pieces(tmp_path, add_prefix_space=False))
    for text in ("the picture", " the picture"):
        ids = tokenizer.encode(text).ids[1:]
        assert tokenizer.decode(ids) == text
        assert ("".join(tokenizer.encode(text).tokens[1:]).startswith("\u2581")) == text.startswith(" ")


def test_bos_eos_and_more_tokens(tmp_path: Path) -> None:
    decoder = {"480": {"content": "<image>"}, "481": {"content": "<pad>", "normalized": True}}
    config = {"add_bos_token": False, "add_eos_token": True, "added_tokens_decoder": decoder}
    tokenizer = converted(pieces(tmp_path, **config))
    ids = tokenizer.encode("a<image>b<pad>").ids
    assert ids[-2:] == [481, 2] and ids.count(480) == 1 and 1 not in ids
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": 480}))
    assert AddedTokens(tmp_path).image_token(480) == "<image>"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"tokenizer_class": "GemmaTokenizer"},
            "tokenizer_class is 'GemmaTokenizer', which vlkv does not convert",
        ),
        ({"bos_token": "<bos>"}, "bos_token is '<bos>'; it must be a piece"),
    ],
)
def test_models_of_another_kind(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        AddedTokens(pieces(tmp_path, **config))


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 3001, -1, -20])
def test_models_that_are_damaged(keep: int, tmp_path: Path) -> None:
    data = (DATA / "pieces.model").read_bytes()
    (pieces(tmp_path) / "tokenizer.model").write_bytes(data[:keep])
    with pytest.raises(CheckpointError) as caught:
        AddedTokens(tmp_path)
    assert "tokenizer.model" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "piece, message",
    [
        (b"\x18\x01", "a piece has no text"),
        (b"\x08\x01", "a piece has no text"),
        (b"\x0a\x01x\x10\x01", "or a score or a kind of another type"),
        (b"\x0a\x01x\x1a\x01x", "or a score or a kind of another type"),
        (b"\x0a\x01x\x15\0\0", "ends after the end"),
        (b"\x0a\x90\x4e" + b"x" * 10_000, "a piece has 10000 characters, the limit is 1024"),
    ],
)
def test_pieces_that_are_damaged(piece: bytes, message: str, tmp_path: Path) -> None:
    path = pieces(tmp_path) / "tokenizer.model"
    size = bytes([len(piece) & 127 | 128, len(piece) >> 7])
    path.write_bytes(path.read_bytes() + b"\x0a" + size + piece)
    with pytest.raises(CheckpointError, match=message):
        AddedTokens(tmp_path)


def test_added_tokens_that_are_damaged(tmp_path: Path) -> None:
    (pieces(tmp_path) / "added_tokens.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json"):
        AddedTokens(tmp_path)


def test_a_pointer_in_the_models_place(tmp_path: Path) -> None:
    (pieces(tmp_path) / "tokenizer.model").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        AddedTokens(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model; give the folder"
    ):
        AddedTokens(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="Qwen2Tokenizer"):
        AddedTokens(tmp_path)
