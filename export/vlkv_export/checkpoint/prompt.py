"""Reads the BOS, EOS and padding ids, and the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkv.storage.manifest import TokenFacts
from vlkv_export.checkpoint.fields import Fields, read_object, read_text

Defaults = Mapping[str, int | None]


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
