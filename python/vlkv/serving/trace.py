"""A recorded load: the time of each request, its picture, and the lengths of its prompt and answer.

Each line is a request in JSON: `{"at": seconds, "width": pixels, "height": pixels, "words": of the prompt,
"max_tokens": N, "image": number of the picture}`. With `width` 0 the request has no picture; requests with the same
`image` number share a picture. `document` words stand before the prompt: equal numbers give equal documents, whose
words are `w0` to `w9999`.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from PIL import Image

from vlkv.errors import VlkvError
from vlkv.storage.files import reason, show

MAX_LINES = 1_000_000
MAX_SIDE = 8192
WORDS = ("what", "is", "the", "total", "of", "this", "picture", "and", "where", "does", "it", "stand")


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request of a trace."""

    at: Annotated[float, msgspec.Meta(ge=0)]
    width: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)] = 0
    height: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)] = 0
    words: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 8
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 64
    image: Annotated[int, msgspec.Meta(ge=0)] = 0
    document: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0

    def prompt(self) -> str:
        """The document and a text of `words` words."""
        numbers = np.random.default_rng(self.image).integers(0, 10_000, self.document)
        words = [f"w{number}" for number in numbers]
        return " ".join(words + [WORDS[n % len(WORDS)] for n in range(self.words)])

    def picture(self) -> bytes | None:
        """A PNG of that size; equal numbers and sizes give equal pictures."""
        return _png(self.width, self.height, self.image) if self.width and self.height else None


def read_trace(path: Path) -> list[Line]:
    """Reads a file's lines, ordered by time. Raises `VlkvError`, which names the invalid line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VlkvError(f"{show(path)}: {reason(error)}") from None
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        if number > MAX_LINES:
            raise VlkvError(f"{show(path)} has more than {MAX_LINES} lines")
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=Line))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise VlkvError(f"{show(path)}, line {number}: {reason(error)}") from None
    if not found:
        raise VlkvError(f"{show(path)} holds no requests")
    return sorted(found, key=lambda line: line.at)


@lru_cache(maxsize=64)
def _png(width: int, height: int, number: int) -> bytes:
    colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()
