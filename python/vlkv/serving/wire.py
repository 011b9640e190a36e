"""Code that all front ends of a server share: pictures, limits, usage, and errors for clients."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum

import numpy as np

from vlkv.errors import ImageError, LimitError, PromptError, ServerFullError, ServerStoppedError, VlkvError
from vlkv.generation.result import Result

MAX_IMAGES = 64
"""The most pictures of one request."""

MAX_PICTURE_BYTES = 64 << 20
"""The most bytes of one picture in a request."""

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACE = b" \t\n\r\x0b\x0c"
_LONGEST_PREFIX = 128
_PIECE = 1 << 20
_HEXADECIMAL = np.array(
    [int(chr(byte), 16) if chr(byte) in "0123456789abcdefABCDEF" else 255 for byte in range(256)], np.uint8
)
"""The value of each byte as a hexadecimal digit; 255 for others."""


class ErrorKind(Enum):
    """The kind of an error. A front end maps each kind to a code of its protocol."""

    INVALID = "invalid"
    """The request is invalid; repeating it does not help."""
    FULL = "full"
    """The server is full, or its client is at a limit. The same request may succeed later."""
    INTERNAL = "internal"
    """The server is at fault."""


def error_kind(error: BaseException) -> ErrorKind:
    """The kind of an error, from its type."""
    if isinstance(error, ServerFullError) or (isinstance(error, LimitError) and error.wait is not None):
        return ErrorKind.FULL
    if isinstance(error, ServerStoppedError):
        return ErrorKind.INTERNAL
    return ErrorKind.INVALID if isinstance(error, VlkvError) else ErrorKind.INTERNAL


def error_text(error: BaseException) -> str:
    """The error as one line for a client; the type's name if the error has no text."""
    return " ".join(str(error).split()).replace("max_new_tokens", "max_tokens") or type(error).__name__


def check_images(count: int) -> None:
    """Checks the number of a request's pictures.

    Raises:
        PromptError: `count` is over `MAX_IMAGES`.
    """
    if count > MAX_IMAGES:
        raise PromptError(f"the request has {count} pictures, the limit is {MAX_IMAGES}")


def picture(data: bytes) -> bytes:
    """The bytes of a picture's file, given as they are or as base64 (JSON holds no bytes).

    The time that this takes grows with the size and no faster.

    Args:
        data: the file, or its base64 with or without a `data:` prefix.

    Raises:
        ImageError: more than `MAX_PICTURE_BYTES`, or damaged base64.
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise ImageError(f"picture: has {len(data)} bytes, the limit is {MAX_PICTURE_BYTES}")
    body = data
    if data.startswith(b"data:"):
        prefix, comma, body = data.partition(b",")
        if not comma or len(prefix) > _LONGEST_PREFIX or not prefix.endswith(b";base64"):
            return data
    decoded = from_base64(body)
    return data if decoded is None else decoded


def from_base64(body: bytes | memoryview) -> bytes | None:
    """Decodes a picture's base64; the time is linear in its length. None if it is not base64 at all.

    Blanks and line ends are ignored.

    Raises:
        ImageError: more than `MAX_PICTURE_BYTES`, or damaged base64.
    """
    if len(body) > MAX_PICTURE_BYTES:
        raise ImageError(f"picture: has {len(body)} bytes, the limit is {MAX_PICTURE_BYTES}")
    with suppress(binascii.Error):  # most have neither blanks nor faults
        return b"".join(_strictly(body))
    digits = bytearray()
    for piece in _pieces(body):
        digits += piece.translate(None, _SPACE)
    tail = digits[-3:]
    padding = len(tail) - len(tail.rstrip(b"="))
    bare = len(digits) - padding
    if not bare or padding > 2 or any(piece.translate(None, _ALPHABET) for piece in _pieces(digits[:bare])):
        return None
    decoded = bytearray()
    try:
        for piece in _pieces(digits):
            decoded += base64.b64decode(piece)
    except binascii.Error as error:
        raise ImageError(f"picture: base64 of {len(body)} characters is damaged: {error}") from error
    return bytes(decoded)


def _strictly(body: bytes | memoryview) -> Iterator[bytes]:
    """The bytes of base64 without blanks. Raises `binascii.Error` for any other; padding belongs to the last piece."""
    if not body or len(body) % 4 or body[-3:] == b"===":
        raise binascii.Error("not whole groups of four")
    last = (len(body) - 1) // _PIECE
    for number, piece in enumerate(_pieces(body)):
        if number != last and piece.endswith(b"="):
            raise binascii.Error("padding is not at the end")
        yield binascii.a2b_base64(piece, strict_mode=True)


def _pieces(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Pieces of a multiple of four bytes: other threads run between two, while one call would hold them up."""
    return (bytes(data[start : start + _PIECE]) for start in range(0, len(data), _PIECE))


def from_percent(body: bytes) -> bytes:
    """Decodes `%41` and the like; what is no such escape stays. The time is linear, and a thousandth of `unquote`'s.

    Raises:
        ImageError: more than `MAX_PICTURE_BYTES`.
    """
    if len(body) > MAX_PICTURE_BYTES:
        raise ImageError(f"picture: has {len(body)} bytes, the limit is {MAX_PICTURE_BYTES}")
    decoded, begin = bytearray(), 0
    while begin < len(body):
        end = begin + _PIECE
        if end < len(body) and (cut := body.find(b"%", end - 2, end)) >= 0:
            end = cut  # an escape is not divided
        decoded += _unescaped(body[begin:end])
        begin = end
    return bytes(decoded)


def _unescaped(body: bytes) -> bytes:
    found = np.frombuffer(body, np.uint8)
    digit = _HEXADECIMAL[found]
    place = np.flatnonzero(found[:-2] == ord("%"))
    place = place[(digit[place + 1] < 16) & (digit[place + 2] < 16)]
    decoded, kept = found.copy(), np.ones(len(found), bool)
    decoded[place] = digit[place + 1] << 4 | digit[place + 2]
    kept[place + 1] = kept[place + 2] = False
    return decoded[kept].tobytes()


def usage(result: Result) -> dict[str, int | list[int]]:
    """The tokens of an answer, and the bytes of its cache. `kept_tokens` is the mean over layers."""
    kept = list(result.kept_tokens)
    return {
        "prompt_tokens": result.prompt_tokens,
        "image_tokens": result.image_tokens,
        "pruned_tokens": result.pruned_tokens,
        "cached_tokens": result.cached_tokens,
        "kept_tokens": sum(kept) // max(1, len(kept)),
        "kept_tokens_per_layer": kept,
        "generated_tokens": len(result.token_ids),
        "cache_bytes": result.cache_bytes,
        "recall_bytes": result.recall_bytes,
        "cache_bytes_full": result.cache_bytes_full,
    }
