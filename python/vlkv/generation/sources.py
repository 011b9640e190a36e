"""Pictures that were read before, known by what they were given as: their features are used without decoding them.

A picture's name (`vlkv.generation.reuse`) is made of its pixel values, so equal pictures in different files have one.
Here a digest of the file's bytes, or of a Pillow image's pixels, leads to that name.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image

from vlkv.generation.reuse import picture_digest
from vlkv.inputs.layouts import Layout

MOST = 4096
"""Pictures that are known at once; each takes about 300 bytes."""


def digest_of(source: Any, layout: Layout, owner: str = "") -> bytes | None:
    """SHA-256 of a picture as it was given, of how it is laid out, and of who gave it.

    None for what is decoded anyway: a path, whose file may change; and images with metadata, such as an orientation,
    or in other modes than RGB.
    """
    if isinstance(source, bytes):
        return picture_digest(layout, owner, b"file", source)
    if type(source) is Image.Image and source.mode == "RGB" and not source.info and not source.getexif():
        return picture_digest(layout, owner, f"pixels {source.size}".encode(), np.asarray(source).data)
    return None


class Sources:
    """Names of pictures by the digests of their sources; the least recently used go first. Any thread may ask.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._names: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, digest: bytes | None) -> bytes | None:
        """The name of the picture that was once given so; None if none is known."""
        with self._lock:
            if digest is None or digest not in self._names:
                return None
            self._names.move_to_end(digest)
            return self._names[digest]

    def learn(self, digest: bytes | None, name: bytes) -> None:
        """Remembers the name of a picture that was decoded without an error."""
        if digest is None:
            return
        with self._lock:
            self._names[digest] = name
            self._names.move_to_end(digest)
            while len(self._names) > self._most:
                self._names.popitem(last=False)
