"""Pictures changed at random: each is read, or refused in one line; none takes long or more memory than its limit."""

from __future__ import annotations

import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from serving.mixture import FORMATS, picture
from vlkv.errors import ImageError
from vlkv.inputs.image import decoded_pixels, open_image, picture_size

TRIALS = 120


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_pictures(rng, kind):
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(out, kind)
    data, read = out.getvalue(), 0
    for trial in range(TRIALS):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 8))):
            # headers are where sizes and offsets are
            place = int(rng.integers(min(len(data), 64 if trial % 2 else len(data))))
            changed[place] = int(rng.choice([0, 0xFF, 0x7F, int(rng.integers(256))]))
        if trial % 5 == 0:
            del changed[int(rng.integers(1, len(changed))) :]
        for function in (picture_size, decoded_pixels, open_image):
            try:
                found = function(bytes(changed), **({} if function is picture_size else {"limit": 1_000_000}))
                read += function is open_image
                if function is open_image:
                    assert found.mode == "RGB" and found.width * found.height <= 1_000_000
            except ImageError as error:
                assert "\n" not in str(error)
    assert read < TRIALS


def test_all_formats_are_read(rng):
    for _ in range(60):
        assert open_image(picture(rng, (7, 5))).size == (7, 5)


def test_time_and_memory_of_bad_pictures_are_small():
    out = io.BytesIO()
    Image.new("1", (1, 1)).save(out, "PNG")
    bomb = bytearray(out.getvalue())
    bomb[16:24] = (40_000).to_bytes(4, "big") * 2
    for data in (
        bytes(bomb),
        b"P6\n9999999999 9999999999\n255\n",
        b"BM" + b"\xff" * 200,
        b"%" * 100_000 + b"!",
    ):
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(ImageError):
            open_image(data)
        spent, most = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 16 << 20 and spent < 2
