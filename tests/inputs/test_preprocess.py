"""Preprocessing equals Hugging Face's Pillow processors and refuses sizes that the graph cannot take."""

import warnings
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from vlkv.errors import ImageError
from vlkv.inputs.image import open_image
from vlkv.inputs.layouts import lay_out
from vlkv.inputs.preprocess import pixel_values
from vlkv.storage.image_facts import ImageFacts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

CLIP = ImageFacts(
    token_id=1,
    token="<image>",
    tile_features=576,
    height=336,
    width=336,
    resize="shortest_edge",
    resize_height=336,
    resize_width=336,
    crop=True,
    pad_to_square=False,
    resample=3,
    rescale=1 / 255,
    normalize=True,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
SIZES = [
    (336, 336),
    (337, 500),
    (500, 337),
    (1, 1),
    (3, 2),
    (1, 40),
    (40, 1),
    (1201, 73),
    (97, 1300),
    (2000, 1501),
]


def facts(**changes: Any) -> ImageFacts:
    return msgspec.structs.replace(CLIP, **changes)


def preprocess(images: list[Image.Image], our: ImageFacts) -> np.ndarray:
    """Returns the pixel values of all pictures, one tile each."""
    layouts = lay_out([image.size for image in images], our)
    names = (f"picture {number} of {len(images)}" for number in range(1, len(images) + 1))
    made = [pixel_values(*given[:2], our, given[2]) for given in zip(images, layouts, names, strict=True)]
    return np.concatenate(made)


def reference(images: list[Image.Image], our: ImageFacts) -> np.ndarray:
    """Runs the Hugging Face processor that the facts describe."""
    size = {"height": our.resize_height, "width": our.resize_width}
    options = {
        "do_resize": our.resize != "none",
        "size": {"shortest_edge": our.resize_height} if our.resize == "shortest_edge" else size,
        "resample": our.resample,
        "do_center_crop": our.crop,
        "crop_size": {"height": our.height, "width": our.width},
        "do_rescale": our.rescale != 1.0,
        "rescale_factor": our.rescale,
        "do_normalize": our.normalize,
        "image_mean": list(our.mean),
        "image_std": list(our.std),
    }
    kind = LlavaImageProcessorPil if our.pad_to_square else CLIPImageProcessorPil
    if our.pad_to_square:
        options["do_pad"] = True
    return np.stack(kind(**options)(images, return_tensors="np")["pixel_values"])


def assert_equal(found: np.ndarray, want: np.ndarray, our: ImageFacts) -> None:
    """Compares within one rounding step: one of 255 levels, divided by the smallest deviation."""
    assert found.dtype == np.float32
    assert found.shape == want.shape
    step = our.rescale / (min(our.std) if our.normalize else 1.0)
    assert np.abs(found - want).max() <= step * 1.001
    assert np.mean(found != want) <= 0.001


def noise(height: int, width: int, seed: int) -> Image.Image:
    print(f"seed {seed}")
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    return Image.fromarray(np.repeat(np.repeat(coarse, 3, 0), 3, 1)[:height, :width])


@pytest.mark.parametrize(
    "our",
    [
        facts(),
        facts(resize_height=224, resize_width=224, height=224, width=224, resample=2),
        facts(resize_height=30, resize_width=30, height=41, width=28, resample=1),
        facts(pad_to_square=True, mean=(0.5, 0.25, 0.75)),
        facts(resize="exact", crop=False, resample=0),
        facts(
            resize="exact",
            crop=False,
            resize_height=56,
            resize_width=84,
            height=56,
            width=84,
            normalize=False,
        ),
        facts(resize="none", rescale=1.0, mean=(127.5,) * 3, std=(63.0,) * 3, height=57, width=42),
        facts(resize="none", mean=(1.0,) * 3, std=(0.25,) * 3, height=40, width=101),
    ],
    ids=["clip", "bilinear", "padded crop", "pad to square", "nearest", "plain", "no rescale", "crop only"],
)
def test_equals_the_hugging_face_processor(our: ImageFacts) -> None:
    images = [noise(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
    found = preprocess(images, our)
    for number, image in enumerate(images):
        assert_equal(found[number : number + 1], reference([image], our), our)


def test_shipped_form_is_white_zero_and_untouched() -> None:
    our = facts(resize="none", crop=False, mean=(1.0,) * 3, std=(0.25,) * 3)
    form = Image.new("RGB", (336, 336), "white")
    form.putpixel((5, 7), (0, 0, 0))
    found = preprocess([form], our)
    assert_equal(found, reference([form], our), our)
    assert np.flatnonzero(found[0, 0]).tolist() == [7 * 336 + 5]
    assert found[0, 0, 7, 5] == -4.0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1"])
def test_opened_picture_equals_the_processor_given_the_same_image(mode: str) -> None:
    array = np.random.default_rng(3).integers(0, 256, (50, 61, 4), np.uint8)
    image = Image.fromarray(array).convert("RGB" if mode in {"P", "CMYK"} else "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    assert_equal(preprocess([open_image(image)], CLIP), reference([image], CLIP), CLIP)


def test_no_pictures() -> None:
    assert lay_out([], CLIP) == ()


def test_a_size_that_the_graph_does_not_take_is_named() -> None:
    our = facts(resize="none", crop=False)
    good, bad = Image.new("RGB", (336, 336)), Image.new("RGB", (300, 200))
    with pytest.raises(ImageError, match=r"picture 2 of 2: 300 x 200 .*takes 336 x 336"):
        preprocess([good, bad], our)
    with pytest.raises(ImageError, match="comes out as 336 x 504"):
        preprocess([Image.new("RGB", (200, 300))], facts(crop=False))


@pytest.mark.parametrize("our", [facts(), facts(pad_to_square=True)], ids=["resize", "pad"])
def test_a_thread_of_pixels_does_not_become_gigabytes(our: ImageFacts) -> None:
    with pytest.raises(ImageError, match=r"1 x 2000000.*limit is 100 megapixels"):
        preprocess([Image.new("RGB", (1, 2_000_000))], our)
