"""Pictures of every kind that are read correctly, and pictures that are refused in one line."""

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

import vlkv.inputs.image
from vlkv.errors import ImageError
from vlkv.inputs.image import FORMATS, decoded_pixels, open_image, picture_size


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def pixels(source: str | Path | bytes | Image.Image) -> np.ndarray:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    return str(caught.value)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x")


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    array = noise(7, 5)
    data = saved(Image.fromarray(array))
    path = tmp_path / "ünï code.png"
    path.write_bytes(data)
    for source in (str(path), path, data, Image.open(io.BytesIO(data)), Image.fromarray(array)):
        np.testing.assert_array_equal(pixels(source), array)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    array = np.zeros((16, 16, 3), np.uint8)
    array[4:12, 4:12] = (200, 100, 50)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    close = np.abs(pixels(saved(Image.fromarray(array), kind, **options)).astype(int) - array)
    lossy = kind in {"JPEG", "AVIF"}
    assert np.median(close) <= (4 if lossy else 0)
    assert close.mean() <= (4 if lossy else 0)


def test_one_pixel() -> None:
    assert pixels(saved(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def test_gray_bits_and_cmyk() -> None:
    gray = noise(5, 4, 1)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(gray))), np.stack([gray] * 3, -1))
    bits = gray > 127
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(bits)))[..., 0], bits * 255)
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(saved(red, "JPEG", quality=95)).astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(pixels(saved(red, "TIFF")).astype(int) - (255, 0, 0)).max() == 0


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pixels(saved(image, transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    half = saved(image, transparency=bytes([255, 0]))
    assert pixels(half).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_alpha_is_laid_on_white(mode: str) -> None:
    array = noise(9, 6, 4)
    array[..., 3] = np.resize([0, 255, 100], array.shape[:2])
    if mode in {"LA", "La"}:
        array[..., 1:3] = array[..., :1]
        image = Image.fromarray(np.ascontiguousarray(array[..., [0, 3]]), "LA" if mode == "LA" else None)
    else:
        image = Image.fromarray(array)
    weight = array[..., 3:].astype(float) / 255
    want = array[..., :3] * weight + 255 * (1 - weight)
    found = pixels(image.convert(mode)).astype(float)
    # premultiplied storage rounds colour * alpha to an integer, half a step over the smallest weight here
    step = 1.0 if mode in {"RGBA", "LA"} else 1.0 + 1.0
    assert np.abs(found - want).max() <= step
    assert (found[array[..., 3] == 0] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "TIFF big-endian", "object"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    gray = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    image: object = Image.fromarray(gray)
    if kind == "PPM":
        source: object = b"P5 6 4 65535\n" + gray.astype(">u2").tobytes()
    elif kind == "TIFF big-endian":
        source = saved(Image.frombytes("I;16B", (6, 4), gray.astype(">u2").tobytes()), "TIFF")
    elif kind == "object":
        source = image
    else:
        source = saved(Image.fromarray(gray), kind)
    want = np.rint(gray / 257).astype(int)
    np.testing.assert_array_equal(pixels(source), np.stack([want] * 3, -1))  # type: ignore[arg-type]


def test_16_bit_transparent_gray_is_white() -> None:
    gray = np.array([[0, 1000, 65535]], np.uint16)
    image = Image.fromarray(gray)
    image.info["transparency"] = 1000
    assert pixels(image)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array.transpose(1, 0, 2)[:, ::-1],
        7: array[::-1, ::-1].transpose(1, 0, 2),
        8: array.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(array), "PNG", exif=exif)), turned)
    jpeg = pixels(saved(Image.fromarray(array), "JPEG", exif=exif, quality=95))
    assert jpeg.shape == turned.shape
    assert np.abs(jpeg.astype(int) - turned).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "PNG with XMP"])
def test_the_header_says_the_upright_size(kind: str, orientation: int) -> None:
    image, exif = Image.fromarray(noise(16, 32)), Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        data = saved(image, "TIFF", exif=exif)
    else:
        described = PngInfo()
        described.add_itxt("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{orientation}"/>')
        data = saved(image, "PNG", pnginfo=described)
    size = (16, 32) if orientation in (5, 6, 7, 8) else (32, 16)
    assert picture_size(data) == open_image(data).size == size
    opened = Image.open(io.BytesIO(data))
    assert picture_size(opened) == size
    opened.load()
    assert picture_size(opened) == open_image(opened).size == size


def test_damaged_exif_says_nothing() -> None:
    data = saved(Image.fromarray(noise(4, 4)), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1")
    np.testing.assert_array_equal(pixels(data), noise(4, 4))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == 3
    assert (pixels(data) == (255, 0, 0)).all()


def test_missing_and_wrong_sources(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.png") == f"{tmp_path / 'absent.png'}: no such file"
    assert refusal(str(tmp_path)) == f"{tmp_path}: not a file"
    assert "not a file" in refusal("/dev/zero")
    assert refusal("") == "'': not a file"
    assert refusal("a\0b.png").startswith("'a\\x00b.png': ")
    assert "too long" in refusal("x" * 5000)
    assert "NoneType" in refusal(None)
    assert "no such file" in refusal("a\nb.png")


def test_not_a_picture_names_file_and_formats(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("hello")
    text = refusal(path)
    assert str(path) in text
    assert "not a picture" in text
    assert "PNG, JPEG" in text
    path.write_bytes(b"")
    assert "not a picture" in refusal(path)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert "not a picture" in refusal(script)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "half"
    data = saved(Image.fromarray(noise(64, 64)), kind)
    path.write_bytes(data[: len(data) // 2])
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert "damaged or truncated" in text or "not a picture" in text


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_001), (12_000, 12_000), (60_000, 60_000)])
def test_above_100_megapixels_is_seen_in_the_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, height))
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert "limit is 100 megapixels" in text
    assert f"picture has {width * height / 1e6:.6g} megapixels" in text


def test_100_megapixels_pass_the_header_check() -> None:
    assert "truncated" in refusal(png_header(10_000, 10_000))


def test_no_pixels() -> None:
    assert "0 x 5 picture has no pixels" in refusal(Image.new("RGB", (0, 5)))
    assert refusal(png_header(0, 7))


def test_values_outside_16_bits_and_floats() -> None:
    assert "-1 to 70000" in refusal(Image.fromarray(np.array([[-1, 70000]], np.int32)))
    assert "floating-point" in refusal(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_a_limit_is_seen_in_the_header() -> None:
    data = png_header(3000, 2000)
    assert decoded_pixels(data) == 6_000_000
    for read in (open_image, decoded_pixels):
        with pytest.raises(
            ImageError, match=r"3000 x 2000 picture has 6 megapixels, the limit is 5\.9 megapixels"
        ):
            read(data, limit=5_900_000)
    with pytest.raises(ImageError, match="the limit is"):
        open_image(Image.new("RGB", (30, 20)), limit=599)
    assert open_image(Image.new("RGB", (30, 20)), limit=600).size == (30, 20)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_large_pictures_are_read_at_a_fraction(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlkv.inputs.image, "REDUCED", 10_000)
    blocks = Image.fromarray(noise(8, 12)).resize((384, 256), Image.Resampling.NEAREST)
    data = saved(blocks, kind, **({"quality": 95} if kind == "JPEG" else {}))
    for least, size in (
        (None, (384, 256)),
        (200, (384, 256)),
        (64, (192, 128)),
        (32, (96, 64)),
        (1, (48, 32)),
    ):
        image = open_image(data, least=least)
        assert image.size == size
        assert decoded_pixels(data, least=least) == size[0] * size[1]
        middle = np.asarray(image.resize((12, 8), Image.Resampling.BOX)).astype(int)
        assert np.median(np.abs(middle - noise(8, 12))) <= 12
    assert decoded_pixels(data, limit=30_000, least=64) == 192 * 128
    with pytest.raises(ImageError, match="192 x 128"):
        open_image(data, limit=20_000, least=64)
    assert open_image(saved(blocks, "JPEG", progressive=True), least=1).size == (384, 256)
    assert open_image(saved(Image.new("RGB", (99, 101)), kind), least=1).size == (99, 101), "not a large one"


def test_orientation_of_a_reduced_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlkv.inputs.image, "REDUCED", 1000)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(saved(Image.new("RGB", (200, 100)), "JPEG", exif=exif), least=25).size == (50, 100)


def test_readers_do_not_wait_for_each_other_and_warnings_come_back() -> None:
    """A picture is read while another one is still being decoded."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Image.Image):
        def load(self) -> object:
            inside.set()
            assert go_on.wait(20)
            return super().load()

    slow = Slow()
    slow._im, slow._mode, slow._size = Image.new("RGB", (4, 4)).im, "RGB", (4, 4)
    before = list(warnings.filters)
    reader = threading.Thread(target=open_image, args=(slow,))
    reader.start()
    assert inside.wait(20)
    done = threading.Thread(target=open_image, args=(saved(Image.new("RGB", (8, 8))),))
    done.start()
    done.join(20)
    assert not done.is_alive()
    go_on.set()
    reader.join(20)
    assert list(warnings.filters) == before


def test_a_picture_takes_little_more_than_its_pixels() -> None:
    """Decoding takes four bytes per pixel plus the result. Copies once took nine times three bytes."""
    script = """
import io, resource
import numpy as np
from PIL import Image
from vlkv.inputs.image import open_image
stream = io.BytesIO()
Image.new("RGBA", (5000, 4000), (1, 2, 3, 100)).save(stream, "PNG", compress_level=1)
data = stream.getvalue()
del stream
open_image(data)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open("/proc/self/clear_refs", "w") as file: file.write("5")
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
before = status("VmRSS:")
open_image(data)
print((status("VmHWM:") - before) * 1024 / 20_000_000)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of memory can't be reset here")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10


@pytest.mark.parametrize("kind", ["object", "TIFF"])
def test_32_bit_integers_of_8_bits_are_not_black(kind: str) -> None:
    gray = np.arange(256, dtype=np.int32).reshape(16, 16)
    image = Image.fromarray(gray)
    assert image.mode == "I"
    source: object = image if kind == "object" else saved(image, "TIFF")
    np.testing.assert_array_equal(pixels(source), np.stack([gray] * 3, -1))  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels(source), np.asarray(image.convert("RGB")))  # type: ignore[arg-type]
    wide = Image.fromarray(gray * 257)
    np.testing.assert_array_equal(pixels(wide), np.stack([gray] * 3, -1))


def test_a_dark_16_bit_ppm_stays_dark() -> None:
    assert pixels(b"P5 2 1 65535\n" + bytes([0, 0, 0, 200])).max() == 1


def test_bytes_of_every_kind_and_paths_of_every_kind(tmp_path: Path) -> None:
    data = saved(Image.new("RGB", (2, 2), (9, 8, 7)))
    path = tmp_path / "a.png"
    path.write_bytes(data)

    class Somewhere:
        def __fspath__(self) -> str:
            return str(path)

    for source in (bytearray(data), memoryview(data), Somewhere()):
        assert pixels(source)[0, 0].tolist() == [9, 8, 7]  # type: ignore[arg-type]
