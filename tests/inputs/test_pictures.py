"""The pictures of a request are refused by their headers, and decoded one at a time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlkv import Question
from vlkv.errors import ImageError
from vlkv.inputs import pictures
from vlkv.inputs.image import open_image
from vlkv.inputs.layouts import lay_out
from vlkv.inputs.pictures import Limits
from vlkv.inputs.preprocess import pixel_values


@pytest.fixture
def facts(engine_of):
    return engine_of("llama").manifest.image


def png(width, height):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, 7, 9)).save(stream, "PNG")
    return stream.getvalue()


def read_pictures(sources, facts, limits):
    """Reads pictures of one tile each."""
    return pictures.read_pictures(sources, lay_out([(1, 1)] * len(sources), facts), facts, limits)


def test_the_pixels_are_those_of_all_at_once(facts, rng):
    images = [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((40, 50), (9, 8), (33, 1))
    ]
    (layout,) = lay_out([(1, 1)], facts)
    for mine, image in zip(read_pictures(images, facts, Limits()), images, strict=True):
        np.testing.assert_array_equal(mine, pixel_values(image, layout, facts))
    assert read_pictures([], facts, Limits()) == []


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(picture=99), "10 x 10 picture has 0.0001 megapixels, the limit is 9.9e-05"),
        (Limits(request=399), "pictures 1 to 4 of 5 have 0.0004 megapixels together"),
        (Limits(count=4), "the request has 5 pictures, the limit is 4"),
    ],
)
def test_nothing_is_decoded_where_a_limit_is_passed(facts, limits, text, monkeypatch):
    monkeypatch.setattr(pictures, "open_image", None)
    with pytest.raises(ImageError, match=text):
        read_pictures([png(10, 10)] * 5, facts, limits)


def test_each_is_made_small_before_the_next_is_decoded(facts, monkeypatch):
    """Of eight pictures, two are never in memory at full size."""
    alive = 0
    most = 0

    class Counted(Image.Image):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def opened(source, **settings):
        nonlocal alive, most
        plain = open_image(source, **settings)
        image = Counted()
        image._im, image._mode, image._size = plain.im, plain.mode, plain.size
        alive += 1
        most = max(most, alive)
        return image

    monkeypatch.setattr(pictures, "open_image", opened)
    assert len(read_pictures([png(30, 30)] * 8, facts, Limits())) == 8
    assert (alive, most) == (0, 1)


def test_a_large_jpeg_counts_as_what_is_decoded(facts):
    stream = io.BytesIO()
    Image.new("RGB", (6000, 4000)).save(stream, "JPEG")
    assert read_pictures([stream.getvalue()], facts, Limits(picture=500_000))[0].shape[0] == 1


def test_a_server_takes_less_than_the_command_line(engine_of):
    engine = engine_of("llama")
    picture = Image.new("L", (7000, 6000))
    with engine.scheduler(slots=1, memory=1 << 22) as scheduler:
        with pytest.raises(ImageError, match="42 megapixels, the limit is 36 megapixels"):
            scheduler.submit(Question("a", [picture]))
        assert scheduler.stats().submitted == 0
