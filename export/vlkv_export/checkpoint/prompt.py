"""Reads the tokenizer's files, the BOS, EOS and padding ids, the image token, and the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vlkv.errors import CheckpointError
from vlkv.storage.manifest import TokenFacts
from vlkv_export.checkpoint.fields import Fields, read_bytes, read_object, read_text, show

TOKENIZER = "tokenizer.json"
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
Defaults = Mapping[str, int | None]


class _Added(msgspec.Struct):
    id: int
    content: str


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Added] = []


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """Names of the tokenizer's files. Raises `CheckpointError` if there is no `tokenizer.json`."""
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}; make one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    return (TOKENIZER, *(name for name in OPTIONAL if (folder / name).is_file()))


class AddedTokens:
    """The added tokens of `tokenizer.json`: texts by id. Raises `CheckpointError`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TOKENIZER
        data = read_bytes(self.path)
        try:
            tokenizer = msgspec.json.decode(data, type=_Tokenizer)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is not a tokenizer: {show(str(error))}") from None
        self.texts = {added.id: added.content for added in tokenizer.added_tokens if added.content}

    def id_of(self, text: str) -> int:
        """Return the id of a token's text. Raises `CheckpointError`."""
        for index, content in self.texts.items():
            if content == text:
                return index
        raise CheckpointError(f"{self.path} has no added token {show(text)}, which pictures need")


def image_token(added: AddedTokens, token_id: int, medium: str = "image") -> str:
    """Find the text of the image token, or another medium's, among the added tokens. Raises `CheckpointError`."""
    if token_id in added.texts:
        return added.texts[token_id]
    raise CheckpointError(
        f"{added.path} has no added token of id {token_id}, config.json's {medium} token; "
        f"add it to the tokenizer as a special token (<{medium}>)"
    )


def read_tokens(folder: Path, config: Fields, vocab: int, defaults: Defaults) -> TokenFacts:
    """Read BOS, EOS and padding: from `generation_config.json`, else `config.json`, else its `text_config`.

    `defaults` are the class's, for ids that no file names. A padding id outside the vocabulary counts as none.
    """
    sources = [config, config.child("text_config")]
    path = folder / "generation_config.json"
    if path.exists():
        sources.insert(0, Fields(read_object(path), str(path)))
    bos, eos, pad = (
        _ids(sources, f"{name}_token_id", vocab, defaults[name]) for name in ("bos", "eos", "pad")
    )
    return TokenFacts(bos=bos[0] if bos else None, eos=eos, pad=pad[0] if pad else None)


def _ids(sources: list[Fields], name: str, vocab: int, default: int | None) -> tuple[int, ...]:
    source = next((source for source in sources if name in source), None)
    value: Any = default if source is None else source.get(name)
    given = value if isinstance(value, list) else [] if value is None else [value]
    for index in given:
        whole = isinstance(index, int) and not isinstance(index, bool)
        if source is not None and (not whole or (index >= vocab and name != "pad_token_id")):
            raise source.fail(name, f"an id, or a list of ids, of the vocabulary of {vocab}")
    return tuple(dict.fromkeys(index for index in given if 0 <= index < vocab))


def read_chat_template(folder: Path) -> str | None:
    """Read the chat template from the first file that has one, in transformers' order; None without one.

    The order is `processor_config.json`, `chat_template.json`, `chat_template.jinja`, `chat_templates/default.jinja`,
    `tokenizer_config.json`. Of several templates the one named `default` is taken.
    """
    for name in ("processor_config.json", "chat_template.json"):
        if (folder / name).exists():
            template = _template(Fields(read_object(folder / name), str(folder / name)))
            if template is not None:
                return template
    for path in (folder / "chat_template.jinja", folder / "chat_templates" / "default.jinja"):
        if path.exists():
            return read_text(path)
    path = folder / "tokenizer_config.json"
    return _template(Fields(read_object(path), str(path))) if path.exists() else None


def _template(fields: Fields) -> str | None:
    value = fields.get("chat_template")
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        if len(named) != len(value):
            raise fields.fail("chat_template", "a string, or a list of objects of name and template")
        value = {entry["name"]: entry.get("template") for entry in named}
    if isinstance(value, dict):
        value = value.get("default")
    if value is not None and not isinstance(value, str):
        raise fields.fail("chat_template", "a string, or have one named default")
    return value
