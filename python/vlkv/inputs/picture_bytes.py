"""A picture's bytes as Pillow reads them: how often is limited, as are the parts that make decoding endless.

Pillow walks through the parts of a file in Python: chunks, segments, tags, runs, or single pixels. Each takes a read,
so that a file of millions of empty parts holds the interpreter for a minute. Compiled decoders read large pieces.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vlkv.errors import ImageError

READS = 1 << 16
"""Reads that any file may take; a PNG with 400 chunks of 8 KiB takes 1,600."""
BYTES_PER_READ = 1 << 8
"""One more read for each so many bytes."""
SLOW_PIXELS = 1 << 21
"""The most pixels of a picture that Pillow decodes in Python: BMP in runs, PPM as text or with an odd maximum."""
SLOW_READS = 4
"""Reads that such a decoder takes of a pixel at most."""
SCANS = 100
"""Scans of a JPEG, each of which goes over the whole picture; usual progressive ones have 10."""
COMMENTS = 4096
"""Number signs in a PPM as text, where each comment moves what follows it."""
_PIECE = 1 << 20


class _Counted:
    """Counts the reads of the stream class behind it."""

    label: str
    left: int

    def begin(self, name: str) -> None:
        """Allow what a file of this size takes; `name` is for errors."""
        self.label = name
        size = self.seek(0, io.SEEK_END)  # type: ignore[attr-defined]
        self.seek(0)  # type: ignore[attr-defined]
        self.left = READS + size // BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as the stream does. Raises `ImageError` after too many reads."""
        self.left -= 1
        if self.left < 0:
            raise ImageError(f"{self.label}: picture has too many small parts; save it anew, as PNG or JPEG")
        found: bytes = super().read(size)  # type: ignore[misc]
        return found

    def count(self, text: bytes) -> int:
        """How often two bytes occur in the file; the position stays."""
        place, found, last = self.tell(), 0, b""  # type: ignore[attr-defined]
        self.seek(0)  # type: ignore[attr-defined]
        while piece := super().read(_PIECE):  # type: ignore[misc]
            found += (last + piece).count(text)
            last = piece[1 - len(text) :] if len(text) > 1 else b""
        self.seek(place)  # type: ignore[attr-defined]
        return found


class _Memory(_Counted, io.BytesIO):
    pass


class _File(_Counted, io.BufferedReader):
    pass


Stream = _Memory | _File


def stream_of(source: Path | io.BytesIO, name: str) -> Stream:
    """A source's bytes with a limit of reads. Raises `OSError` for a file that can't be opened."""
    stream: Stream = (
        _Memory(source.getvalue()) if isinstance(source, io.BytesIO) else _File(io.FileIO(source))
    )
    stream.begin(name)
    return stream


def check_parts(image: Image.Image, stream: Stream) -> None:
    """Refuse an opened picture whose parts make its decoding take too long; nothing is decoded.

    Raises:
        ImageError: it names what there is too much of.
    """
    name, pixels = stream.label, image.width * image.height
    decoder = image.tile[0][0] if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    if decoder in Image.DECODERS:
        if pixels > SLOW_PIXELS:
            raise ImageError(
                f"{name}: {image.width} x {image.height} picture in a form that is decoded slowly; "
                f"the limit is {SLOW_PIXELS / 1e6:.3g} megapixels: save it as PNG"
            )
        stream.left += SLOW_READS * pixels
    for parts, what, most in (
        (stream.count(b"\xff\xda") if image.format in {"JPEG", "MPO"} else 0, "scans", SCANS),
        (stream.count(b"#") if decoder == "ppm_plain" else 0, "comments", COMMENTS),
    ):
        if parts > most:
            raise ImageError(f"{name}: picture has {parts} {what}, the limit is {most}; save it anew")
