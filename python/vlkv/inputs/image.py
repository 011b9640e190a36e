"""Pictures from files, bytes or Pillow images, as 8-bit RGB; anything wrong with one is an `ImageError`."""

from __future__ import annotations

import io
import re
import threading
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlkv.errors import ImageError
from vlkv.storage.files import reason, show

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

_quiet = threading.Lock()


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Read a picture as an RGB image: upright by its EXIF orientation, the first frame of an animation.

    Transparency is laid on white, as Hugging Face's processors of transformers 5 do with a Pillow image.
    16-bit gray is scaled to 8 bits. `source` is a path, a file's content, or a Pillow image.
    `ImageError`, one line that names the source: no file, not a picture, truncated, no pixels, more than
    `MAX_PIXELS` (seen from the header, before any pixel is decoded).
    """
    name = _name(source)
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if isinstance(source, Image.Image):
                return _read(source, name)
            with Image.open(_stream(source, name), formats=_formats()) as image:
                return _read(image, name)
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
        except Exception as error:  # decoders raise whatever bad bytes lead them to
            raise ImageError(f"{name}: damaged or truncated picture: {reason(error)}") from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow knows; others, such as PostScript, are never tried."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def check_pixels(width: int, height: int, name: str) -> None:
    """Raise an `ImageError` that names the size where a picture has no pixels or more than `MAX_PIXELS`."""
    if width <= 0 or height <= 0:
        raise ImageError(f"{name}: {width} x {height} picture has no pixels")
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} picture has {_megapixels(width * height)}"
        raise ImageError(f"{name}: {size}, the limit is {_megapixels(MAX_PIXELS)}")


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.6g} megapixels"


def _name(source: object) -> str:
    if isinstance(source, str | Path):
        return show(source)
    if isinstance(source, Image.Image):
        return show(getattr(source, "filename", "") or "picture")
    return "picture"


def _stream(source: str | Path | bytes, name: str) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        raise ImageError(f"{name}: a path, bytes or a Pillow image is wanted, not {type(source).__name__}")
    path = Path(source)
    try:
        if path.is_file():
            return path
        missing = not path.exists()
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {reason(error)}") from error
    raise ImageError(f"{name}: {'no such file' if missing else 'not a file'}")


def _read(image: Image.Image, name: str) -> Image.Image:
    check_pixels(*image.size, name)
    image.load()
    check_pixels(*image.size, name)
    return _to_rgb(_upright(image), name)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; an EXIF block that can't be read says nothing about orientation."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point picture, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")
    if image.info.get("transparency") is not None or image.mode in {"LA", "PA", "RGBA", "RGBa"}:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale gray 0..65535 to 0..255, rounded; a value that counts as transparent becomes white."""
    gray = np.asarray(image).astype(np.int64)
    low, high = int(gray.min()), int(gray.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: gray values from {low} to {high} are outside 16 bits")
    scaled = ((gray * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[gray == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")
