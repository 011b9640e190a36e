"""Reads pictures from files, bytes or Pillow images as 8-bit RGB. Every failure is an `ImageError`."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from vlkv.errors import ImageError
from vlkv.inputs.picture_bytes import check_parts, stream_of
from vlkv.storage.files import reason, show

MAX_PIXELS = 100_000_000
ORIENTATION = 0x0112
TIFF_WIDTH, TIFF_HEIGHT = 0x0100, 0x0101
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 0x0142, 0x0143
BAND = 1 << 20
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

REDUCED = 16_000_000
"""Pictures with more pixels are decoded at a half, a quarter or an eighth of their size, if the format supports it."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image


def open_image(source: Source, *, limit: int = MAX_PIXELS, least: int | None = None) -> Image.Image:
    """Read a picture as an RGB image: upright by its EXIF orientation, the first frame of an animation.

    Transparency is composed on white, as Hugging Face's processors of transformers 5 do with a Pillow image.
    16-bit gray is scaled to 8 bits; gray in 32-bit integers counts as 8 bits if no value is above 255, else as 16.

    Args:
        source: a path, a file's content, or a Pillow image.
        limit: the most pixels to decode; the header is checked before decoding.
        least: the shortest useful side; a large JPEG or JPEG 2000 is then decoded at a fraction of its size, with both
            sides at least twice as long as this.

    Raises:
        ImageError: the source is not a file, not a picture, truncated, without pixels, or has more than `limit`.
    """
    name = _name(source)
    with _as_image_error(name), _QUIET:
        if isinstance(source, Image.Image):
            check_pixels(*source.size, name, limit)
            return _read(source, name, limit)
        with _opened(source, name) as image:
            _check_size(image, name, limit, least)
            return _read(image, name, limit)


def picture_size(source: Source) -> tuple[int, int]:
    """Read a picture's width and height, upright, from its header alone. Raises the errors of `open_image`."""
    name = _name(source)
    with _as_image_error(name), _QUIET:
        if isinstance(source, Image.Image):
            return _size(source, name)
        with _opened(source, name) as image:
            return _size(image, name)


def decoded_pixels(source: Source, *, limit: int = MAX_PIXELS, least: int | None = None) -> int:
    """The number of pixels that `open_image` would decode, from the header alone. Raises the errors of `open_image`."""
    name = _name(source)
    with _as_image_error(name), _QUIET:
        if isinstance(source, Image.Image):
            check_pixels(*source.size, name, limit)
            return source.width * source.height
        with _opened(source, name) as image:
            return _check_size(image, name, limit, least)


def open_animation(stream: Path | io.BytesIO, name: str) -> tuple[int, tuple[int, int]] | None:
    """How many frames an animation has, and their width and height; None for what Pillow can't read.

    A still picture has one frame. Raises `ImageError` for a damaged one.
    """
    with _as_image_error(name), _QUIET:
        try:
            image = Image.open(stream, formats=_formats())
        except UnidentifiedImageError:
            return None
        with image:
            check_pixels(*image.size, name)
            return getattr(image, "n_frames", 1), image.size


def animation_frames(
    stream: Path | io.BytesIO, name: str, chosen: Sequence[int], limit: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """The chosen frames of an animation, ascending, as RGB images of their own. Raises `ImageError`."""
    if isinstance(stream, io.BytesIO):
        stream.seek(0)
    with _as_image_error(name), _QUIET, Image.open(stream, formats=_formats()) as image:
        for place in chosen:
            image.seek(place)
            image.load()
            check_pixels(*image.size, name, limit)
            yield _to_rgb(image.copy(), name)


@contextmanager
def _opened(source: Source, name: str) -> Iterator[Image.Image]:
    """A picture whose header was read, and whose parts are few enough to decode it."""
    with (
        stream_of(source_stream(source, name), name) as stream,
        Image.open(stream, formats=_formats()) as image,
    ):
        check_parts(image, stream)
        yield image


def _check_size(image: Image.Image, name: str, limit: int, least: int | None) -> int:
    """Check the size, and make a large picture decode at a fraction of it; returns the pixels to decode."""
    check_pixels(*image.size, name, MAX_PIXELS)
    width, height = image.size
    if least is not None and width * height > min(REDUCED, limit):
        halvings = next((by for by in (3, 2, 1) if min(image.size) >> by >= 2 * least), 0)
        # a progressive JPEG's coefficients are all held in memory, even if it is decoded at a fraction
        if image.format == "JPEG" and not image.info.get("progressive"):
            image.draft(image.mode, (width >> halvings, height >> halvings))
            width, height = image.size
        elif image.format == "JPEG2000":
            image.reduce = halvings  # type: ignore[assignment,method-assign]
            width, height = -(-width >> halvings), -(-height >> halvings)
    check_pixels(width, height, name, limit)
    return max(width * height, _tile_pixels(image, name, limit))


def _tile_pixels(image: Image.Image, name: str, limit: int) -> int:
    """The pixels of a tile of a TIFF, which may be larger than the picture; a whole one is decoded at a time."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or TIFF_TILE_WIDTH not in image.tag_v2:
        return 0
    width, height = (int(image.tag_v2.get(tag, 0)) for tag in (TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT))
    check_pixels(width, height, f"{name}, a tile", limit)
    return width * height


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    """Turns every exception about a picture into an `ImageError` of one line."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that can be read ({', '.join(_formats())})") from error
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        size = _megapixels(int(count.group())) if count else "too many pixels"
        raise ImageError(f"{name}: picture has {size}, the limit is {_megapixels(MAX_PIXELS)}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # decoders raise any exception on damaged bytes
        raise ImageError(f"{name}: damaged or truncated picture: {reason(error)}") from error


class _Quiet:
    """Suppresses decoders' warnings while any thread reads a picture.

    Warning filters are global to the process: the first reader sets one and the last removes it, without waiting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._before.__exit__(None, None, None)


_QUIET = _Quiet()


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow supports; other formats, such as PostScript, are never tried."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def check_pixels(width: int, height: int, name: str, limit: int = MAX_PIXELS) -> None:
    """Raise an `ImageError` that names the size if a picture has no pixels or more than `limit`."""
    if width <= 0 or height <= 0:
        raise ImageError(f"{name}: {width} x {height} picture has no pixels")
    if width * height > limit:
        size = f"{width} x {height} picture has {_megapixels(width * height)}"
        raise ImageError(f"{name}: {size}, the limit is {_megapixels(limit)}")


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.6g} megapixels"


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return show(os.fspath(source))
    if isinstance(source, Image.Image):
        return show(getattr(source, "filename", "") or "picture")
    return "picture"


def source_stream(source: object, name: str) -> Path | io.BytesIO:
    """A source's bytes, by path or in memory. Raises `ImageError` for what is no file."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"{name}: a path, bytes or a Pillow image is wanted, not {type(source).__name__}")
    path = Path(os.fsdecode(source))
    try:
        if path.is_file():
            return path
        missing = not path.exists()
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {reason(error)}") from error
    raise ImageError(f"{name}: {'no such file' if missing else 'not a file'}")


def _read(image: Image.Image, name: str, limit: int) -> Image.Image:
    image.load()
    check_pixels(*image.size, name, limit)
    return _to_rgb(_upright(image), name)


def _size(image: Image.Image, name: str) -> tuple[int, int]:
    check_pixels(*image.size, name, MAX_PIXELS)
    try:
        # not image.getexif(): Pillow decodes a whole PNG to look for an EXIF block after its pixels
        turned = Image.Image.getexif(image).get(ORIENTATION) in SIDEWAYS
        if turned and isinstance(image, TiffImagePlugin.TiffImageFile):
            # the size of a TIFF that has not been decoded is upright already in newer versions of Pillow
            return image.tag_v2[TIFF_HEIGHT], image.tag_v2[TIFF_WIDTH]
    except Exception:
        turned = False
    return (image.height, image.width) if turned else image.size


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; an unreadable EXIF block is ignored."""
    try:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point picture, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")
    if image.info.get("transparency") is not None or image.mode in {"LA", "PA", "RGBA", "RGBa"}:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Compose transparency on white, a few rows at a time, as three copies of a whole picture need much memory."""
    found = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        band = image.crop(box)
        band.info = image.info
        band = band.convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        found.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return found


def _from_integers(image: Image.Image, name: str) -> Image.Image:
    """Scale gray 0..65535 to 0..255, rounded; the value that marks transparency becomes white.

    32-bit integers don't state their range: a picture without a value above 255 is taken as 8 bits, as in
    transformers, except PPM, which is always read as 16 bits.
    """
    gray = np.asarray(image)
    low, high = int(gray.min()), int(gray.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: gray values from {low} to {high} are outside 16 bits")
    if image.mode == "I" and high <= 255 and image.format != "PPM":
        scaled = gray.astype(np.uint8)
    else:
        scaled = ((gray.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[gray == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")
