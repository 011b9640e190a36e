"""Text to token ids and back, with the `tokenizers` library and the engine directory's files."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from vlkv.errors import EngineError, PromptError
from vlkv.storage.files import reason, show

if TYPE_CHECKING:
    import tokenizers

    from vlkv.storage.image_facts import ImageFacts
    from vlkv.storage.manifest import TokenFacts

NAME = "tokenizer.json"
SPLICE = -200
"""Between the ids of a text: a picture's place, where the tokenizer has no token for it (as in the original LLaVA)."""
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
LONG = 1 << 16
"""Characters of a text that takes much memory while it is tokenised, 500 bytes a token: one at a time."""
_ONE_LONG = Lock()
_WINDOW = 16
_BROKEN = "\ufffd"
_incremental = codecs.getincrementaldecoder("utf-8")


class Tokenizer:
    """The checkpoint's tokenizer.

    Attributes:
        special_tokens: texts by the names that chat templates use: `bos_token`, `eos_token`, ...
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: dict[str, str], spliced: str | None = None
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spliced = spliced
        self.special_tokens = special_tokens
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self._byte_ids = _byte_ids(backend)
        self._alphabet = _alphabet(backend)

    @classmethod
    def load(
        cls, directory: Path, tokens: TokenFacts | None = None, image: ImageFacts | None = None
    ) -> Tokenizer:
        """Read `tokenizer.json`, and the special tokens' texts from the configuration beside it.

        Without `tokenizer_config.json` the texts of BOS, EOS and padding come from the ids of `tokens`. `image` says
        whether the tokenizer knows the image token. Raises `EngineError` for a missing or damaged file.
        """
        backend = _parse(_read(directory / NAME), show(directory / NAME))
        special: dict[str, str] = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (directory / name).is_file():
                for key, text in _special_tokens(directory / name).items():
                    special.setdefault(key, text)
        if tokens is not None and not (directory / "tokenizer_config.json").is_file():
            ids = {
                "bos_token": tokens.bos,
                "eos_token": next(iter(tokens.eos), None),
                "pad_token": tokens.pad,
            }
            for key, index in ids.items():
                found = backend.id_to_token(index) if index is not None and index >= 0 else None
                if found is not None:
                    special.setdefault(key, found)
        return cls(backend, special, image.token if image is not None and image.spliced else None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Turn text into ids; texts of special tokens in it become those tokens.

        `add_special_tokens` adds the tokens that the tokenizer puts around a text, such as BOS. If the tokenizer does
        not know the image token, the text is split there, each piece is tokenised separately, and `SPLICE` marks the
        places between them. Raises `PromptError` for a text with lone surrogates.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            where = f"character {error.start} is the lone surrogate U+{code:04X}"
            if 0xDC80 <= code <= 0xDCFF:  # what Python makes of bytes of a command line
                where = f"character {error.start} is the byte 0x{code - 0xDC00:02x}, which is not UTF-8"
            raise PromptError(f"prompt is not text: {where}") from error
        first, *others = [text] if self._spliced is None else text.split(self._spliced)
        with _ONE_LONG if len(text) > LONG else nullcontext():
            ids = self._ids(first, add_special_tokens)
            for piece in others:
                ids += [SPLICE, *self._ids(piece, False)]
        return ids

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of a text. `encode` would hold the interpreter meanwhile: 4 MB of text stalled a server for 20 s."""
        (found,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = found.ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text, without special tokens."""
        text: str = self._backend.decode([int(index) for index in ids], skip_special_tokens=True)
        return text

    def token_id(self, token: str) -> int | None:
        """Return the id of a token's text, or None if the vocabulary has no such token."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def special_ids(self, texts: Iterable[str]) -> set[int]:
        """Return the ids of those texts that are special tokens, with or without blanks around them."""
        return {
            index
            for text in texts
            if (index := self.token_id(text.strip())) in self._special_ids and index is not None
        }

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text, maybe a part of a character; none for special tokens."""
        if self.is_silent(token):
            return b""
        text: str = self._backend.id_to_token(token) or ""
        if token in self._byte_ids:
            return bytes([self._byte_ids[token]])
        if self._alphabet and self._alphabet.keys() >= set(text):
            return bytes(self._alphabet[letter] for letter in text)
        return text.replace("\u2581", " ").encode()

    def piece(self, token: int) -> str:
        """The text of a token for display; special tokens, and those that are parts of characters, show their names."""
        name: str = self._backend.id_to_token(token) or ""
        try:
            return self.token_bytes(token).decode() or name
        except UnicodeDecodeError:
            return name

    def detokenizer(self) -> Detokenizer:
        """Make a streaming decoder for one answer."""
        return Detokenizer(self, self._byte_ids)

    def is_silent(self, token: int) -> bool:
        """Return whether an id has no text: a special token, or an id beyond the vocabulary."""
        return token in self._special_ids or self._backend.id_to_token(token) is None


class Detokenizer:
    """Decodes one answer token by token; the joined pieces equal `Tokenizer.decode` of all tokens.

    A piece is held back while it may still change: where the text ends in U+FFFD, that may be an incomplete character,
    of which a decoder makes no more than one U+FFFD; those before it stay. Byte tokens `<0x..>` give a character as
    soon as it is complete. `Tokenizer.decode` replaces a whole run of them by U+FFFD if one byte is wrong; here only
    the wrong bytes are replaced, as text that was shown can't be taken back. Only the last tokens are decoded again, so
    a step's time does not grow with the answer.
    """

    def __init__(self, tokenizer: Tokenizer, byte_tokens: Mapping[int, int]) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens
        self._ids_of_bytes = {byte: index for index, byte in byte_tokens.items()}
        self._characters = _incremental("replace")
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """Take one token; return the text that is complete now, which is often empty."""
        if self._tokenizer.is_silent(token):
            return ""
        byte = self._byte_tokens.get(token)
        if byte is None:
            self._take_bytes(b"", end=True)
            self._ids.append(token)
        elif not self._take_bytes(bytes([byte])):
            return ""
        text = self._tokenizer.decode(self._ids)
        stable = text.removesuffix(_BROKEN)
        if not stable.startswith(self._shown):
            return ""
        piece = stable[len(self._shown) :]
        self._shown = stable
        if len(self._ids) > 2 * _WINDOW:
            self._forget()
        return piece

    def _take_bytes(self, data: bytes, end: bool = False) -> bool:
        """Add the characters that these bytes complete, as token ids; wrong bytes become U+FFFD."""
        text = self._characters.decode(data, end)
        self._ids += (self._ids_of_bytes[byte] for byte in text.encode())
        return bool(text)

    def finish(self) -> str:
        """Return the text that was held back."""
        self._take_bytes(b"", end=True)
        text = self._tokenizer.decode(self._ids)
        piece = text[len(self._shown) :] if text.startswith(self._shown) else ""
        self._shown = text
        return piece

    def _forget(self) -> None:
        """Keep only the last tokens; later tokens extend their text as they extend the whole text.

        This requires that they have a text, as a decoder may strip a space before the first token.
        """
        start = len(self._ids) - _WINDOW
        while start < len(self._ids) - 1 and self._byte_tokens.get(self._ids[start], 0) & 0xC0 == 0x80:
            start += 1  # not inside a character's bytes
        ids = self._ids[start:]
        alone = self._tokenizer.decode(ids)
        if alone:
            self._ids, self._shown = ids, alone.removesuffix(_BROKEN)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from error


def _parse(data: bytes, name: str) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_str(data.decode())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's panics are not subclasses of `Exception`
        raise EngineError(f"{name}: not a tokenizer: {reason(error)}") from error


def _special_tokens(path: Path) -> dict[str, str]:
    """Read `bos_token` and similar entries: a text, or an object with the text as `content`."""
    try:
        config = msgspec.json.decode(_read(path))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from error
    found = {}
    for name in _NAMED:
        value = config.get(f"{name}_token") if isinstance(config, dict) else None
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[f"{name}_token"] = text
    return found


def _byte_ids(backend: tokenizers.Tokenizer) -> dict[int, int]:
    """Return the bytes by the ids of `<0x00>`..`<0xFF>`, if all exist and the decoder joins them."""
    decoder = backend.decoder
    if decoder is None or "ByteFallback" not in decoder.__getstate__().decode():
        return {}
    ids: list[int | None] = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return {} if None in ids else {index: byte for byte, index in enumerate(ids) if index is not None}


def _alphabet(backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Return the bytes by the letters that stand for them in byte-level tokens; empty for other tokenizers.

    A byte that is a printable character of Latin-1 is its own letter; the others have those from U+0100 on.
    """
    decoder = backend.decoder
    if decoder is None or "ByteLevel" not in decoder.__getstate__().decode():
        return {}
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    known = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(known.values()))
    return known | dict(zip(letters[len(known) :], others, strict=True))
