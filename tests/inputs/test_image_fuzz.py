"""Random bytes and mutated pictures raise `ImageError` or nothing, and give no warning."""

import io
import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlkv.errors import ImageError
from vlkv.inputs.image import open_image

KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "I;16")


@cache
def sample(kind: str, mode: str) -> bytes | None:
    """Encodes a small noisy picture. Returns nothing if the format lacks the mode."""
    gray = np.random.default_rng(7).integers(0, 256, (12, 10, 3), np.uint8)
    image = (
        Image.fromarray(gray).convert(mode)
        if mode != "I;16"
        else Image.fromarray(gray[..., 0] * np.uint16(257))
    )
    stream = io.BytesIO()
    try:
        image.save(stream, kind, exif=Image.Exif())
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return stream.getvalue()


def check(data: bytes) -> None:
    try:
        image = open_image(data)
    except ImageError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 400
    else:
        assert image.mode == "RGB"
        assert min(image.size) > 0


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_pictures(kind: str) -> None:
    seed = sum(map(ord, kind))
    print(f"seed {seed}")
    chance = random.Random(seed)
    samples = [data for mode in MODES if (data := sample(kind, mode)) is not None]
    assert samples
    assert {open_image(data).size for data in samples} == {(10, 12)}
    for _ in range(120):
        data = bytearray(chance.choice(samples))
        for _ in range(chance.choice([0, 1, 1, 2, 8])):
            data[chance.randrange(min(len(data), chance.choice([64, 10**6])))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        check(bytes(data))
