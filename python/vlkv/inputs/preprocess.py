"""Turns pictures into the vision graph's input, with the same results as Hugging Face's Pillow processors.

The order is: pad to a square, resize, center crop, rescale, normalise, each as in the checkpoint's processor. A picture
of several tiles is resized to its grid, padded with black, and cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkv.errors import ImageError
from vlkv.inputs.image import check_pixels
from vlkv.inputs.layouts import Layout
from vlkv.storage.image_facts import AnyRes, ImageFacts, Rows


def pixel_values(
    image: Image.Image | NDArray[np.float32], layout: Layout, facts: ImageFacts, name: str = "picture"
) -> NDArray[np.float32]:
    """Make `pixel_values` float32 `[tiles, 3, height, width]` from an RGB image (as `open_image` returns it).

    An array of pixel values is returned as it is. Raises `ImageError` if the result does not have the graph's size, or
    an intermediate picture exceeds the limit of pixels (a very long one that is resized by its shorter edge).
    """
    if isinstance(image, np.ndarray):
        return image
    table = _table(facts)
    pixels = np.zeros((layout.count, 3, *layout.tiles), np.float32)
    for tile, array in enumerate(tiles(image, layout, facts, name)):
        for channel in range(3):
            np.take(table[channel], array[:, :, channel], out=pixels[tile, channel])
    return pixels


def tiles(
    image: Image.Image, layout: Layout, facts: ImageFacts, name: str = "picture"
) -> Iterator[NDArray[np.uint8]]:
    """The picture as the model sees it: uint8 `[height, width, 3]` per tile, the overview tile first."""
    if isinstance(facts.rule, Rows):
        yield np.asarray(image.resize(layout.scaled, resample=facts.resample))
        return
    if layout.grid == (0, 0):
        square = facts.pad_to_square or isinstance(facts.rule, AnyRes)
        yield arrange(image, msgspec.structs.replace(facts, pad_to_square=square), name)
        return
    yield arrange(image, facts, name)
    canvas = grid_canvas(image, layout, facts.resample)
    high, wide = layout.tiles
    for row in range(layout.grid[0]):
        for column in range(layout.grid[1]):
            yield canvas[row * high : (row + 1) * high, column * wide : (column + 1) * wide]


def grid_canvas(image: Image.Image, layout: Layout, resample: int) -> NDArray[np.uint8]:
    """The canvas `[height, width, 3]` of a picture's grid: the scaled picture in the middle, black around it."""
    height, width = layout.grid[0] * layout.tiles[0], layout.grid[1] * layout.tiles[1]
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - layout.scaled[0]) // 2, (height - layout.scaled[1]) // 2
    scaled = np.asarray(image.resize(layout.scaled, resample=resample))
    canvas[top : top + layout.scaled[1], left : left + layout.scaled[0]] = scaled
    return canvas


def _table(facts: ImageFacts) -> NDArray[np.float32]:
    """The normalised values `[3, 256]` of each channel's 256 levels, in the original's order and precision."""
    level = (np.arange(256, dtype=np.float64) * facts.rescale).astype(np.float32)
    if not facts.normalize:
        return np.stack([level] * 3)
    mean, std = np.array(facts.mean, np.float32), np.array(facts.std, np.float32)
    return (level - mean[:, None]) / std[:, None]


def arrange(image: Image.Image, facts: ImageFacts, name: str = "picture") -> NDArray[np.uint8]:
    """Pad, resize and crop to uint8 `[height, width, 3]`, as the model sees the picture."""
    original = image.size
    if facts.pad_to_square:
        image = _pad_to_square(image, facts, name)
    size = _resized(image.size, facts)
    if size is not None:
        check_pixels(*size, f"{name}, resized from {original[0]} x {original[1]}")
        image = image.resize(size, resample=facts.resample)
    array = np.asarray(image)
    if facts.crop:
        array = _center_crop(array, facts.height, facts.width)
    if array.shape != (facts.height, facts.width, 3):
        was = f"{original[0]} x {original[1]} picture comes out as {array.shape[1]} x {array.shape[0]}"
        raise ImageError(
            f"{name}: {was}; the model takes {facts.width} x {facts.height} and does not resize to it"
        )
    return array


def _pad_to_square(image: Image.Image, facts: ImageFacts, name: str) -> Image.Image:
    """Center the picture in a square of its longer side; the background is the mean colour."""
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    check_pixels(side, side, f"{name}, padded to a square from {width} x {height}")
    colour = tuple(min(max(int(mean * 255), 0), 255) for mean in facts.mean)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _resized(size: tuple[int, int], facts: ImageFacts) -> tuple[int, int] | None:
    """Return width and height after resizing; None if the picture is not resized."""
    if facts.resize == "none":
        return None
    if facts.resize == "exact":
        return facts.resize_width, facts.resize_height
    width, height = size
    edge = facts.resize_height
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _center_crop(array: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Cut out the middle `[height, width, 3]`, with zeros (black) around a smaller picture."""
    above, left = array.shape[0] - height, array.shape[1] - width
    if above >= 0 and left >= 0:
        return array[above // 2 : above // 2 + height, left // 2 : left // 2 + width]
    tall, wide = max(height, array.shape[0]), max(width, array.shape[1])
    canvas = np.zeros((tall, wide, 3), np.uint8)
    row, column = -((array.shape[0] - tall) // 2), -((array.shape[1] - wide) // 2)
    canvas[row : row + array.shape[0], column : column + array.shape[1]] = array
    top, start = above // 2 + row, left // 2 + column
    return canvas[max(0, top) : min(tall, top + height), max(0, start) : min(wide, start + width)]
