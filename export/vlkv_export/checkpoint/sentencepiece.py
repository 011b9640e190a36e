"""A sentencepiece `tokenizer.model` of Llama's kind as the `tokenizer.json` that gives the same ids.

Byte-pair encoding with byte pieces and no normalisation, as Llama, Vicuna and Mistral have it. The file is a protocol
buffer (`sentencepiece_model.proto`), of which a few fields count.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkv.errors import CheckpointError
from vlkv.storage.protobuf import byte_fields, fields
from vlkv_export.checkpoint.fields import Fields, read_bytes, read_object, show

NAME = "tokenizer.model"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
BPE = 2
MARK = "\u2581"
"""What stands for a space."""
LONGEST = 1024
"""The most characters of a usual piece; sentencepiece makes 16. All its halves are compared with the vocabulary."""


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary, whose number is its id."""

    text: str
    score: float
    kind: int


def tokenizer_json(folder: Path, config: Fields) -> bytes:
    """The contents of a `tokenizer.json` for `tokenizer.model`; `config` is `tokenizer_config.json`.

    Raises `CheckpointError` for a file that is damaged, or of another kind than Llama's.
    """
    path = folder / NAME
    try:
        pieces, trainer, normalizer = _read(read_bytes(path))
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path} is not a sentencepiece model: {error}") from None
    unlike = _unlike_llama(pieces, trainer, normalizer, config)
    if unlike:
        raise CheckpointError(
            f"{path}: {unlike}, which vlkv does not convert; make a tokenizer.json with the tokenizer's class of "
            "transformers (not AutoTokenizer): CLASS.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    texts = [piece.text for piece in pieces]
    prefix = config.boolean("add_prefix_space", bool(normalizer.get(3, 1)))
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    tokenizer = {
        "version": "1.0",
        "added_tokens": _added(folder, pieces, config),
        **_marks(prefix, config),
        "post_processor": _around(texts, config),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": next(piece.text for piece in pieces if piece.kind == UNKNOWN),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": _merges(pieces),
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False).encode()


def _unlike_llama(
    pieces: list[Piece], trainer: dict[int, Any], normalizer: dict[int, Any], config: Fields
) -> str | None:
    named = config.string("tokenizer_class", "LlamaTokenizer")
    if named not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return f"tokenizer_class is {show(named)}"
    if trainer.get(3, 1) != BPE:
        return "its pieces are not those of byte-pair encoding"
    if not trainer.get(35, 0):
        return "it has no byte pieces"
    if normalizer.get(2) or normalizer.get(4, 1):
        return "it normalises texts"
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1 or len({piece.text for piece in pieces}) < len(
        pieces
    ):
        return "it has a piece twice, or none for what is unknown"
    return None


def _merges(pieces: list[Piece]) -> list[list[str]]:
    """The pairs that make a piece each, the best piece's first; of one piece's, those of the lower ids."""
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.kind in (NORMAL, USER_DEFINED)}
    order = sorted((index for index in ids.values()), key=lambda index: (-pieces[index].score, index))
    merges = []
    for index in order:
        text = pieces[index].text
        if pieces[index].kind != NORMAL:
            continue
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        known = [(left, right) for left, right in halves if left in ids and right in ids]
        merges += [
            [left, right] for left, right in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        ]
    return merges


def _marks(prefix: bool, config: Fields) -> dict[str, Any]:
    """How spaces become marks: with `legacy`, which is the default, one stands before each text between tokens too."""
    if not prefix:
        return {"normalizer": _replaced(), "pre_tokenizer": None}
    if config.boolean("legacy", True):
        steps = [{"type": "Prepend", "prepend": MARK}, _replaced()]
        return {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    first = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first", "split": False}
    return {"normalizer": None, "pre_tokenizer": first}


def _replaced() -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": MARK}


def _around(texts: list[str], config: Fields) -> dict[str, Any]:
    """BOS before a text and EOS behind it, as `add_bos_token` and `add_eos_token` say."""
    template: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {}
    for name, place, added in (("bos", 0, True), ("eos", 2, False)):
        if not config.boolean(f"add_{name}_token", added):
            continue
        text = _text(config.get(f"{name}_token"), {"bos": "<s>", "eos": "</s>"}[name])
        if text not in texts:
            raise config.fail(f"{name}_token", f"a piece of {NAME}")
        template.insert(place, {"SpecialToken": {"id": text, "type_id": 0}})
        special[text] = {"id": text, "ids": [texts.index(text)], "tokens": [text]}
    return {"type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": special}


def _text(value: Any, default: str) -> str:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else default


def _added(folder: Path, pieces: list[Piece], config: Fields) -> list[dict[str, Any]]:
    """Added tokens: control pieces and those that were defined, then what the configuration has more."""
    found = {
        index: _token(index, {"content": piece.text, "special": piece.kind != USER_DEFINED})
        for index, piece in enumerate(pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    path = folder / "added_tokens.json"
    if path.is_file():
        for text, index in read_object(path).items():
            if isinstance(index, int):
                found[index] = _token(index, {"content": text})
    listed = config.child("added_tokens_decoder")
    for key in listed.values:
        if not key.isdecimal():
            raise listed.fail(key, "named by the token's id")
        found[int(key)] = _token(int(key), listed.child(key).values)
    return [found[index] for index in sorted(found)]


def _token(index: int, values: Any) -> dict[str, Any]:
    """A token of `tokenizer.json`; it is found in the text as it is written."""
    flags = ("single_word", "lstrip", "rstrip")
    token = {"id": index, "content": _text(values.get("content"), ""), "normalized": False}
    token |= {name: bool(values.get(name, False)) for name in flags}
    return token | {"special": bool(values.get("special", True))}


def _read(data: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """Pieces, and the fields of the trainer's and the normaliser's settings."""
    pieces, trainer, normalizer = [], memoryview(b""), memoryview(b"")
    for number, value in byte_fields(memoryview(data)):
        if number == 1:
            pieces.append(_piece(dict(fields(value))))
        elif number == 2:
            trainer = value
        elif number == 3:
            normalizer = value
    if not pieces:
        raise ValueError("it holds no pieces")
    return pieces, dict(fields(trainer)), dict(fields(normalizer))


def _piece(found: dict[int, int | memoryview]) -> Piece:
    text, score, kind = found.get(1), found.get(2, memoryview(bytes(4))), found.get(3, NORMAL)
    if isinstance(text, int | None) or isinstance(score, int) or not isinstance(kind, int):
        raise ValueError("a piece has no text, or a score or a kind of another type")
    piece = Piece(str(text, "utf-8"), struct.unpack("<f", score)[0], kind)
    if kind == NORMAL and len(piece.text) > LONGEST:
        raise ValueError(f"a piece has {len(piece.text)} characters, the limit is {LONGEST}")
    return piece
