"""The tokenizer: its files, its added tokens, and the one that stands for a picture.

`tokenizer.json` is taken as it is, but for tokens that only `tokenizer_config.json` has, which transformers adds as it
loads a tokenizer. Without it, `tokenizer.model` is converted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint import sentencepiece
from vlkv_export.checkpoint.fields import Fields, read_bytes, read_object, show

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

NAME, CONFIG = "tokenizer.json", "tokenizer_config.json"
OPTIONAL = (CONFIG, "special_tokens_map.json", "added_tokens.json")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class _Added(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[Any] = {}


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Added] = []
    model: _Model = msgspec.field(default_factory=_Model)


class AddedTokens:
    """The added tokens of a folder's tokenizer. Raises `CheckpointError` without a tokenizer that can be used.

    Attributes:
        path: the file that they are of.
        config: the fields of `tokenizer_config.json`.
        texts: by id.
        vocabulary: one more than the largest id of the tokens that were not added.
        largest: the largest id of all tokens, -1 where there are none.
        written: a `tokenizer.json` in the place of the folder's, None where that is used as it is.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / CONFIG
        config = Fields(read_object(path), str(path)) if path.is_file() else Fields({}, str(path))
        self.config = config
        self.path, self.written = folder / NAME, None
        if self.path.is_file():
            self._data = read_bytes(self.path)
        elif (folder / sentencepiece.NAME).is_file():
            self.path = folder / sentencepiece.NAME
            self._data = self.written = sentencepiece.tokenizer_json(folder, config)
        else:
            raise CheckpointError(f"{folder} has neither {NAME} nor {sentencepiece.NAME}; {_advice(folder)}")
        self.texts, self.vocabulary = self._parsed()
        self.largest = max(self.vocabulary - 1, *self.texts, -1)
        missing = list(_missing(config, set(self.texts.values())))
        if missing:
            self._add(missing)

    def id_of(self, text: str) -> int:
        """Return the id of a token's text. Raises `CheckpointError`."""
        for index, content in self.texts.items():
            if content == text:
                return index
        raise CheckpointError(f"{self.path} has no added token {show(text)}, which pictures need")

    def image_token(self, token_id: int, medium: str = "image") -> str:
        """Return the image token's text; one of the vocabulary is made an added token. Raises `CheckpointError`."""
        if token_id not in self.texts and medium == "image":
            from tokenizers import AddedToken

            text = self._loaded().id_to_token(token_id)
            if text:
                self._add([AddedToken(text, special=True, normalized=False)])
        if token_id in self.texts:
            return self.texts[token_id]
        raise CheckpointError(
            f"{self.path} has no added token of id {token_id}, config.json's {medium} token; "
            f"add it to the tokenizer as a special token (<{medium}>)"
        )

    def files(self, folder: Path) -> tuple[str, ...]:
        """Names of the tokenizer's files that are taken as they are. Raises `CheckpointError` for a damaged one."""
        found = tuple(name for name in OPTIONAL if (folder / name).is_file())
        for name in found:
            read_object(folder / name)
        return found if self.written is not None else (NAME, *found)

    def _parsed(self) -> tuple[dict[int, str], int]:
        try:
            tokenizer = msgspec.json.decode(self._data, type=_Tokenizer)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is not a tokenizer: {show(str(error))}") from None
        texts = {added.id: added.content for added in tokenizer.added_tokens if added.content}
        vocab = tokenizer.model.vocab
        return texts, len(vocab) if isinstance(vocab, list) else max(vocab.values(), default=-1) + 1

    def _loaded(self) -> Tokenizer:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self._data.decode())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no `Exception`
            raise CheckpointError(f"{self.path} is not a tokenizer: {show(str(error))}") from None

    def _add(self, tokens: list[AddedToken]) -> None:
        """Add tokens; the library numbers those that the vocabulary does not have, as in transformers."""
        tokenizer = self._loaded()
        for token in tokens:
            tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        self._data = self.written = tokenizer.to_str().encode()
        self.texts, self.vocabulary = self._parsed()
        self.largest = max(self.vocabulary - 1, *self.texts, -1)


def _missing(config: Fields, known: set[str]) -> Iterator[AddedToken]:
    """The tokens that the configuration has and the tokenizer does not, by their ids, then the special ones."""
    from tokenizers import AddedToken

    listed = config.child("added_tokens_decoder")
    for key in sorted(listed.values, key=lambda key: (len(key), key)):
        if not key.isdecimal():
            raise listed.fail(key, "named by the token's id")
        fields = listed.child(key)
        text = fields.string("content", "")
        if text and text not in known:
            known.add(text)
            yield AddedToken(text, **{name: fields.boolean(name, name == "special") for name in FLAGS})
    for text in _special(config):
        if text and text not in known:
            known.add(text)
            yield AddedToken(text, special=True, normalized=False)


def _special(config: Fields) -> Iterator[str]:
    """Texts of the special tokens that the configuration names."""
    named = [config.get(name) for name in config.values if name.endswith("_token")]
    for name in LISTS:
        value = config.get(name)
        named += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    for value in named:
        text: Any = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            yield text


def _advice(folder: Path) -> str:
    """How to make a `tokenizer.json` with the library that has the tokenizer."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return (
            f"make {NAME} of vocab.json and merges.txt with the tokenizer's class of transformers (not AutoTokenizer): "
            "Qwen2Tokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) for one"
        )
    return "give the folder of a Hugging Face checkpoint, with its tokenizer"
