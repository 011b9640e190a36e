"""`Sources` and digests of pictures as they were given."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlkv.generation.sources import Sources, digest_of


def layout(**other):
    facts = {
        "size": (4, 4),
        "tiles": (4, 4),
        "count": 1,
        "grid": (0, 0),
        "scaled": (4, 4),
        "frame": None,
    } | other
    return SimpleNamespace(sources=np.zeros((3, 1), np.int64), **facts)


def test_digests_tell_sources_apart(rng):
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels)
    found = [
        digest_of(image, layout()),
        digest_of(Image.fromarray(pixels.reshape(8, 6, 3)), layout()),
        digest_of(Image.fromarray(pixels ^ 1), layout()),
        digest_of(image.tobytes(), layout()),
        digest_of(image, layout(grid=(1, 2))),
        digest_of(image, layout(frame=1)),
        digest_of(image, layout(), "somebody"),
    ]
    assert None not in found
    assert len(set(found)) == len(found)
    assert digest_of(image.copy(), layout()) == found[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK"])
def test_other_modes_are_decoded(mode):
    assert digest_of(Image.new(mode, (4, 4)), layout()) is None


def test_what_may_change_or_says_more_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    turned, transparent = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))
    turned.getexif()[0x0112] = 6
    transparent.info["transparency"] = (0, 0, 0)
    with Image.open(path) as opened:
        for source in (path, str(path), bytearray(path.read_bytes()), opened, turned, transparent):
            assert digest_of(source, layout()) is None


def test_the_least_recently_used_goes_first():
    sources = Sources(2)
    sources.learn(b"a", b"A")
    sources.learn(b"b", b"B")
    sources.learn(None, b"N")
    assert (sources.name(b"a"), sources.name(None)) == (b"A", None)
    sources.learn(b"c", b"C")
    assert [sources.name(one) for one in (b"a", b"b", b"c")] == [b"A", None, b"C"]
