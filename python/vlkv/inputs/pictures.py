"""A request's pictures, from their sources to pixel values: their sizes are known before any is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlkv.dtypes import Float32
from vlkv.errors import ImageError
from vlkv.inputs.image import MAX_PIXELS, decoded_pixels, open_image
from vlkv.inputs.preprocess import preprocess
from vlkv.storage.manifest import ImageFacts


@dataclass(frozen=True)
class Limits:
    """The most that is decoded for one request.

    Fields:
        picture: pixels of a picture.
        request: pixels of all pictures of a request; None for any number.
        count: pictures of a request; None for any number.
    """

    picture: int = MAX_PIXELS
    request: int | None = None
    count: int | None = None


def read_pictures(sources: Sequence[Any], facts: ImageFacts, limits: Limits) -> Float32:
    """Pixel values `[N,3,height,width]`; one picture at a time is decoded and made small.

    Raises:
        ImageError: a picture that can't be read, or more pixels than `limits`, told from the headers of all.
    """
    least = max(facts.height, facts.width, facts.resize_height, facts.resize_width)
    total = 0
    for number, source in enumerate(sources, 1):
        if limits.count is not None and number > limits.count:
            raise ImageError(f"the request has {len(sources)} pictures, the limit is {limits.count}")
        total += decoded_pixels(source, limit=limits.picture, least=least)
        if limits.request is not None and total > limits.request:
            raise ImageError(
                f"pictures 1 to {number} of {len(sources)} have {total / 1e6:.6g} megapixels together, "
                f"the limit is {limits.request / 1e6:.6g}"
            )
    pixels = np.zeros((len(sources), 3, facts.height, facts.width), np.float32)
    for number, source in enumerate(sources):
        name = f"picture {number + 1} of {len(sources)}"
        pixels[number] = preprocess([open_image(source, limit=limits.picture, least=least)], facts, name)[0]
    return pixels
