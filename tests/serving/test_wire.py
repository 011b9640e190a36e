"""Reading the pictures of a request takes time in proportion to their size."""

from __future__ import annotations

import base64
from time import process_time
from urllib.parse import unquote_to_bytes

import pytest

from vlkv.errors import ImageError
from vlkv.serving import wire
from vlkv.serving.wire import from_base64, from_percent, picture


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "prefix", [b"", b"data:image/png;base64,", b"data:image/svg+xml;charset=utf-8;base64,"]
)
def test_base64_with_and_without_a_prefix_and_line_ends(rng, size, prefix):
    data = rng.bytes(size)
    assert picture(prefix + base64.b64encode(data)) == data
    assert picture(prefix + base64.encodebytes(data) + b" \r\n") == data


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"",
        b"   ",
        b"====",
        b"YWJj===",
        b"a=b",
        b"data:image/png;base64",
        b"data:,x",
    ],
)
def test_what_is_no_base64_stays_as_it_is(data):
    assert picture(data) == data


def test_damaged_base64_is_told():
    with pytest.raises(ImageError, match="base64 of 5 characters is damaged"):
        picture(b"abcde")


@pytest.mark.parametrize("filler", [b" ", b"A", b"=", b" A", b"data:"])
@pytest.mark.parametrize("end", [b"!", b"=!", b"\xff", b""])
def test_no_text_takes_longer_than_its_size(filler, end):
    """A backtracking pattern took 2 s for 24 KB of spaces. Now a hundred times as much takes milliseconds."""
    data = filler * (2_400_000 // len(filler)) + end
    start = process_time()
    try:
        picture(data)
    except ImageError as error:
        assert len(str(error)) < 200
    assert process_time() - start < 2


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(wire, "MAX_PICTURE_BYTES", 10)
    assert picture(b"A" * 8) == bytes(6)
    with pytest.raises(ImageError, match="has 11 bytes, the limit is 10"):
        picture(b"A" * 11)


@pytest.mark.parametrize("piece", [4, 8, 1 << 20])
def test_pieces_of_any_size_give_the_same(rng, monkeypatch, piece):
    """Python's own functions are the oracles."""
    monkeypatch.setattr(wire, "_PIECE", piece)
    for _ in range(2000):
        size = int(rng.integers(0, 40))
        escaped = bytes(rng.choice(list(b"%%%0aFg4"), size).astype("uint8"))
        assert from_percent(escaped) == unquote_to_bytes(escaped)
        data = rng.bytes(size)
        encoded = base64.encodebytes(data)
        assert from_base64(encoded) == (data or None)
        if size % 3:
            assert from_base64(encoded.strip().rstrip(b"=") + b"=!") is None


def test_percent_escapes_over_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_PICTURE_BYTES", 10)
    with pytest.raises(ImageError, match="has 11 bytes, the limit is 10"):
        from_percent(b"%" * 11)
