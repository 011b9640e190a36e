"""Pictures of a few kilobytes or of many small parts whose decoding would take minutes or gigabytes are refused."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from vlkv.errors import ImageError
from vlkv.inputs import picture_bytes
from vlkv.inputs.image import decoded_pixels, open_image, picture_size

PARTS = 200_000
SMALL = "too many small parts"
SLOW = "decoded slowly"


def saved(kind, size=(8, 8), mode="RGB", **settings):
    stream = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 9).save(stream, kind, **settings)
    return stream.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before=b"", behind=b""):
    data = saved("PNG")
    return data[:33] + before + data[33:-12] + behind + data[-12:]


def jpeg(segments):
    data = saved("JPEG")
    return data[:2] + segments + data[2:]


def gif(blocks):
    data = saved("GIF", mode="P")
    first = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    return data[:first] + blocks + data[first:]


def scans(count):
    data = saved("JPEG", mode="L", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * count + data[-2:]


def bmp(width, height, runs):
    offset = 54 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + info + bytes(1024) + runs + b"\0\1"


def jp2(boxes):
    data = saved("JPEG2000")
    return data[:32] + boxes + data[32:]


def tiff(tile):
    """An 8 x 8 gray TIFF that is one compressed tile of so many pixels a side."""
    data = zlib.compress(bytes(min(tile, 16) ** 2))
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 0)]
    offset = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[-1] = (324, offset)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (325, len(data))])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4) + data


@pytest.mark.parametrize(
    "data, why",
    [
        (png(chunk(b"prVt") * PARTS), SMALL),
        (png(behind=chunk(b"prVt") * PARTS), SMALL),
        (png(chunk(b"IDAT") * PARTS), SMALL),
        (jpeg(b"\xff\xfe\0\2" * PARTS), SMALL),
        (gif(b"\x21\xfe\x01c\0" * PARTS), SMALL),
        (jp2(struct.pack(">I4s", 8, b"free") * PARTS), SMALL),
        (b"P5" + b" " * PARTS + b"8 8 255\n" + bytes(64), SMALL),
        (b"P5\n" + b"#\n" * PARTS + b"8 8 255\n" + bytes(64), SMALL),
        (bmp(8, 8, b"\0\2\0\0" * PARTS), SMALL),
        (bmp(3000, 3000, b"\x01\x05" * 64), SLOW),
        (b"P5 3000 3000 254\n", SLOW),
        (b"P2 3000 3000 255\n", SLOW),
        (b"P2 8 8 255\n" + b"#\n" * 9000 + b"1 " * 64, "9000 comments, the limit is 4096"),
        (scans(200), "206 scans, the limit is 100"),
        (tiff(40_000), "1600 megapixels"),
    ],
)
def test_refused(data, why, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageError, match=why) as caught:
            open_image(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"prVt") * 1000),
        jpeg(b"\xff\xfe\0\2" * 1000),
        gif(b"\x21\xfe\x01c\0" * 1000),
        jp2(struct.pack(">I4s", 8, b"free") * 1000),
        bmp(8, 8, (b"\x01\x05" * 8 + b"\0\0") * 8),
        b"P5\n# a comment\n8 8 254\n" + bytes(64),
        b"P3 8 8 255\n# a comment\n" + b"1 " * 192,
        scans(40),
        tiff(16),
    ],
)
def test_read(data, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path):
        assert picture_size(source) == open_image(source).size == (8, 8)


def test_a_tile_counts_among_the_pixels():
    assert decoded_pixels(tiff(16)) == 256
    assert decoded_pixels(saved("TIFF")) == 64


def test_a_large_picture_of_usual_parts_is_read(rng):
    """A PNG of noise in chunks as small as libpng writes, beside what the limit allows."""
    pixels = rng.integers(0, 256, (700, 700, 3), "uint8")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    data = stream.getvalue()
    place, body = 33, b""
    while (length := struct.unpack(">I", data[place : place + 4])[0]) or data[
        place + 4 : place + 8
    ] != b"IEND":
        assert data[place + 4 : place + 8] == b"IDAT"
        body += data[place + 8 : place + 8 + length]
        place += 12 + length
    small = b"".join(chunk(b"IDAT", body[start : start + 512]) for start in range(0, len(body), 512))
    assert open_image(data[:33] + small + data[-12:]).size == (700, 700)


def test_a_count_across_pieces(monkeypatch):
    monkeypatch.setattr(picture_bytes, "_PIECE", 3)
    stream = picture_bytes.stream_of(io.BytesIO(b"ab--ab-abab"), "x")
    assert stream.read(2) == b"ab"
    assert stream.count(b"ab") == 4
    assert stream.read(2) == b"--"
