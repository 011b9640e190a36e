"""Reads a request's pictures and videos as pixel values; all sizes are checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlkv.dtypes import Float32
from vlkv.errors import ImageError
from vlkv.inputs.image import MAX_PIXELS, decoded_pixels, open_image
from vlkv.inputs.layouts import Layout
from vlkv.inputs.preprocess import pixel_values
from vlkv.inputs.video import Video
from vlkv.storage.image_facts import Fixed, ImageFacts
from vlkv.storage.manifest import Manifest

Clip = tuple[Video, Sequence[int]]
"""A video and which of its frames the model is shown."""


@dataclass(frozen=True)
class Limits:
    """Limits of the pictures of one request.

    Fields:
        picture: the most pixels of a picture.
        request: the most pixels of all pictures of a request; None for no limit.
        count: the most pictures of a request; None for no limit.
    """

    picture: int = MAX_PIXELS
    request: int | None = None
    count: int | None = None


def measure_pictures(
    sources: Sequence[Any], layouts: Sequence[Layout], facts: ImageFacts, limits: Limits
) -> list[int]:
    """How many pixels are decoded of each picture: `read_pictures` without reading more than headers."""
    least, found, total = _least(layouts, facts), [], 0
    for number, source in enumerate(sources, 1):
        if limits.count is not None and number > limits.count:
            raise ImageError(f"the request has {len(sources)} pictures, the limit is {limits.count}")
        found.append(decoded_pixels(source, limit=limits.picture, least=least[number - 1]))
        total += found[-1]
        if limits.request is not None and total > limits.request:
            raise ImageError(
                f"pictures 1 to {number} of {len(sources)} have {total / 1e6:.6g} megapixels together, "
                f"the limit is {limits.request / 1e6:.6g}"
            )
    return found


def _least(layouts: Sequence[Layout], facts: ImageFacts) -> list[int]:
    """The shortest side of each picture that is of use."""
    sides = (facts.height, facts.width, facts.resize_height, facts.resize_width)
    return [max(*sides, *layout.scaled) for layout in layouts]


def read_pictures(
    sources: Sequence[Any], layouts: Sequence[Layout], facts: ImageFacts, limits: Limits
) -> list[Float32]:
    """The pixel values `[tiles,3,height,width]` of each picture; they are decoded and resized one at a time.

    Raises:
        ImageError: a picture can't be read, or the headers show more pixels than `limits`.
    """
    measure_pictures(sources, layouts, facts, limits)
    return _read(sources, layouts, facts, limits)


def measure_visuals(
    images: Sequence[Any], clips: Sequence[Clip], layouts: Sequence[Layout], facts: Manifest, limits: Limits
) -> list[int]:
    """How many pixels are decoded of each picture and of each video's frames. The errors of `read_visuals`."""
    pictures = [layout for layout in layouts if layout.frame is None]
    found = measure_pictures(images, pictures, facts.image, limits)
    for number, (video, chosen) in enumerate(clips, 1):
        found.append(video.frames.pixels(chosen, limits.picture))
        total = sum(found)
        if limits.request is not None and total > limits.request:
            raise ImageError(
                f"the request has {total / 1e6:.6g} megapixels up to video {number} of {len(clips)}, "
                f"the limit is {limits.request / 1e6:.6g}; give fewer or smaller frames"
            )
    return found


def read_visuals(
    images: Sequence[Any],
    clips: Sequence[Clip],
    layouts: Sequence[Layout],
    facts: Manifest,
    limits: Limits,
    known: Mapping[int, Any] | None = None,
) -> list[Any]:
    """The same of pictures and of videos' frames, in the order of `layouts`, in which they stand in the prompt.

    `known` has what stands in the place of pictures that need not be decoded, by their numbers from 0.
    """
    measure_visuals(images, clips, layouts, facts, limits)
    pictures = [layout for layout in layouts if layout.frame is None]
    read = iter(_read(images, pictures, facts.image, limits, known))
    frames = _frames(clips, layouts, facts, limits)
    return [next(read) if layout.frame is None else next(frames) for layout in layouts]


def _frames(
    clips: Sequence[Clip], layouts: Sequence[Layout], facts: Manifest, limits: Limits
) -> Iterator[Float32]:
    """Pixel values of all videos' frames."""
    shown = iter([layout for layout in layouts if layout.frame is not None])
    for number, (video, chosen) in enumerate(clips, 1):
        for image in video.frames.images(chosen, limits.picture):
            assert facts.video is not None
            layout = next(shown)
            name = f"frame {layout.frame} of video {number} of {len(clips)}"
            yield pixel_values(image, layout, facts.video.frame, name)


def _read(
    sources: Sequence[Any],
    layouts: Sequence[Layout],
    facts: ImageFacts,
    limits: Limits,
    known: Mapping[int, Any] | None = None,
) -> list[Any]:
    least = _least(layouts, facts)

    def read(number: int) -> Any:
        if known and number in known:
            return known[number]
        name, layout = f"picture {number + 1} of {len(sources)}", layouts[number]
        image = open_image(sources[number], limit=limits.picture, least=least[number])
        _check_shape(image.size, layout, facts, name)
        return pixel_values(image, layout, facts, name)

    return [read(number) for number in range(len(sources))]


def _check_shape(size: tuple[int, int], layout: Layout, facts: ImageFacts, name: str) -> None:
    """Raise `ImageError` for a picture that turned out rotated: a PNG may state its orientation after its pixels."""
    if isinstance(facts.rule, Fixed):
        return
    # a large picture is decoded at a fraction of its size, down to an eighth
    if abs(size[0] * layout.size[1] - size[1] * layout.size[0]) > 8 * sum(layout.size):
        said = f"its header says {layout.size[0]} x {layout.size[1]}, {size[0]} x {size[1]} came out"
        raise ImageError(f"{name}: {said}; save it anew")
