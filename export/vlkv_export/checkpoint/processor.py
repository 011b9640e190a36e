"""Picture preparation: reads `processor_config.json` or `preprocessor_config.json` into `ImageFacts`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import AnyRes, ImageFacts
from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields, read_object, show

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
BILINEAR, BICUBIC = 2, 3

Resize = Literal["none", "shortest_edge", "exact"]
Json = Any


@dataclass(frozen=True)
class Defaults:
    """Values that a class of image processors assumes for fields that its file lacks."""

    mean: list[float] = field(default_factory=lambda: CLIP_MEAN)
    std: list[float] = field(default_factory=lambda: CLIP_STD)
    size: Json = 224
    crop: bool = True
    crop_size: Json = 224


CLIP = Defaults()
HALF = [0.5, 0.5, 0.5]
KINDS = {
    "CLIPImageProcessor": CLIP,
    "LlavaImageProcessor": CLIP,
    "CLIPFeatureExtractor": CLIP,
    "SiglipImageProcessor": Defaults(HALF, HALF, {"height": 224, "width": 224}, False),
    "LlavaNextImageProcessor": CLIP,
    "LlavaOnevisionImageProcessor": Defaults(size={"height": 384, "width": 384}, crop=False),
    "PixtralImageProcessor": Defaults(size={"longest_edge": 1024}, crop=False),
    "VideoLlavaImageProcessor": CLIP,
    "VideoLlavaVideoProcessor": CLIP,
    "LlavaNextVideoVideoProcessor": CLIP,
    "LlavaNextVideoImageProcessor": CLIP,
    "LlavaOnevisionVideoProcessor": Defaults(size={"height": 384, "width": 384}, crop=False),
}
"""Known classes of image and video processors; `Fast` and `Pil` behind a name change nothing."""
ONE_TILE = ("CLIPImageProcessor", "LlavaImageProcessor", "CLIPFeatureExtractor", "SiglipImageProcessor")

Pinpoints = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ImageToken:
    """The image token: its id and its text."""

    id: int
    text: str


def read_processor(folder: Path) -> tuple[Fields, Fields]:
    """Read the image processor's fields: nested in `processor_config.json`, else `preprocessor_config.json`.

    Returns them, and the fields of `processor_config.json`. Raises `CheckpointError` if neither file exists.
    """
    combined, single = folder / "processor_config.json", folder / "preprocessor_config.json"
    fields = Fields({}, str(combined))
    if combined.exists():
        fields = Fields(read_object(combined), str(combined))
        if "image_processor" in fields:
            return fields.child("image_processor"), fields
    if single.exists():
        return Fields(read_object(single), str(single)), fields
    raise CheckpointError(f"{folder} has neither {single.name} nor an image_processor in {combined.name}")


def read_video_processor(folder: Path, combined: Fields, image: Fields) -> Fields:
    """Read the video processor's fields, where transformers looks for them.

    They are nested in `processor_config.json`, else `video_preprocessor_config.json`, else the image processor's.
    """
    path = folder / "video_preprocessor_config.json"
    if "video_processor" in combined:
        return combined.child("video_processor")
    return Fields(read_object(path), str(path)) if path.exists() else image


def read_frame(processor: Fields, vision: VisionConfig, token: ImageToken, kind: str) -> ImageFacts:
    """Say what the runtime does to a frame of a video; `kind` is the class of the family's video processor.

    Video processors do not pad, and one that was saved as an image processor is read as what it is. Raises
    `CheckpointError` where frames would not fit the tower.
    """
    found = processor.string("video_processor_type", kind)
    values = {name: value for name, value in processor.values.items() if name != "do_pad"}
    values |= {"image_processor_type": found}
    return read_image(Fields(values, processor.where), vision, token, (kind,))


def read_sampling(processor: Fields) -> dict[str, Any]:
    """Read how many frames are taken of a file: fields of `VideoFacts`. Without `do_sample_frames` all are."""
    if not processor.boolean("do_sample_frames", False):
        return {}
    if processor.get("num_frames") is not None:
        return {"sampled": processor.integer("num_frames", 1)}
    return {"rate": processor.number("fps", 1.0)} if processor.get("fps") is not None else {}


def read_image(
    processor: Fields, vision: VisionConfig, token: ImageToken, known: Collection[str] = ONE_TILE
) -> ImageFacts:
    """Determine how the runtime prepares a picture of one tile, and the number of its tokens.

    The number of tokens follows from the tower alone: the square of whole patches, and the class token if the select
    strategy keeps it. Several feature layers widen the features and add no tokens; the processor's `patch_size`,
    `num_additional_image_tokens` and strategy are ignored. Raises `CheckpointError` if the processor's pictures would
    not fit the tower, or if its class is not among `known`.
    """
    defaults = defaults_of(processor, known)
    square = "llava" in kind_of(processor).lower() and processor.boolean("do_pad", False)
    if not square and processor.boolean("do_pad", False) and "pad_size" in processor:
        raise CheckpointError(
            f"{processor.where}: pad_size {show(processor.get('pad_size'))} is not supported"
        )
    size = vision.image_size
    crop = processor.boolean("do_center_crop", defaults.crop)
    if crop:
        _check_size(processor, "crop_size", _crop_size(processor, defaults), size)
    resize: Resize = "none"
    height = width = size
    if processor.boolean("do_resize", True):
        resize, height, width = _resize(processor, defaults)
        if not crop:
            if resize == "shortest_edge" and square:
                resize = "exact"
            if resize == "shortest_edge":
                raise CheckpointError(
                    f"{processor.where}: size {show(processor.get('size'))} with do_center_crop false gives "
                    "pictures of any width; give height and width, or set do_center_crop"
                )
            _check_size(processor, "size", (height, width), size)
    return ImageFacts(
        token_id=token.id,
        token=token.text,
        tile_features=vision.tokens,
        height=size,
        width=size,
        resize=resize,
        resize_height=height,
        resize_width=width,
        crop=crop,
        pad_to_square=square,
        **read_levels(processor, defaults),
    )


def read_grids(
    processor: Fields, vision: VisionConfig, token: ImageToken, known: Collection[str], rule: AnyRes
) -> ImageFacts:
    """Determine how the runtime prepares a picture of several tiles. Raises `CheckpointError` if tiles don't fit."""
    defaults = defaults_of(processor, known)
    size = vision.image_size
    if not processor.boolean("do_resize", True):
        raise CheckpointError(
            f"{processor.where}: do_resize false is not supported: tiles are made by resizing"
        )
    _, height, width = _resize(processor, defaults)
    _check_size(processor, "size", (height, width), size)
    if processor.boolean("do_center_crop", defaults.crop):
        _check_size(processor, "crop_size", _crop_size(processor, defaults), size)
    return ImageFacts(
        token_id=token.id,
        token=token.text,
        tile_features=rule.rows * rule.columns + 1,
        height=size,
        width=size,
        resize="exact",
        resize_height=size,
        resize_width=size,
        crop=False,
        pad_to_square=False,
        rule=rule,
        **read_levels(processor, defaults),
    )


def read_pinpoints(config: Fields, processor: Fields, default: Pinpoints, size: int) -> Pinpoints:
    """Read `image_grid_pinpoints` (height and width each), which must be equal in model and processor.

    Raises `CheckpointError`, also for pinpoints that are not multiples of the tower's `size`.
    """
    name = "image_grid_pinpoints"
    found = [_pinpoints(fields, name, default) for fields in (config, processor)]
    if found[0] != found[1]:
        raise CheckpointError(
            f"{processor.where}: {name} {show(found[1])} are not config.json's {show(found[0])}; they must be equal"
        )
    for height, width in found[0]:
        if height % size or width % size:
            raise CheckpointError(
                f"{config.where}: {name} has [{height}, {width}], not multiples of the tower's image_size {size}"
            )
    return found[0]


def _pinpoints(fields: Fields, name: str, default: Pinpoints) -> Pinpoints:
    value = fields.get(name)
    if value is None:
        return default
    fit = isinstance(value, list) and 0 < len(value) <= 1024
    for pair in value if fit else ():
        fit = fit and isinstance(pair, list) and len(pair) == 2
        fit = fit and all(type(side) is int and 0 < side <= 1 << 16 for side in pair)
    if not fit:
        raise fields.fail(name, "a list of [height, width] in pixels")
    return tuple((height, width) for height, width in value)


def kind_of(processor: Fields) -> str:
    """Return the class of the image processor."""
    name = "image_processor_type" if "image_processor_type" in processor else "feature_extractor_type"
    return processor.string(name, next(iter(KINDS))).removesuffix("Fast").removesuffix("Pil")


def defaults_of(processor: Fields, known: Collection[str]) -> Defaults:
    """Return the defaults of the processor's class. Raises `CheckpointError` for a class that is not in `known`."""
    kind = kind_of(processor)
    if kind not in known:
        raise CheckpointError(
            f"{processor.where}: image processor {show(kind)} is not supported; supported: {', '.join(known)}"
        )
    return KINDS[kind]


def read_levels(processor: Fields, defaults: Defaults) -> dict[str, Any]:
    """Read how pixels are resampled, rescaled and normalised: fields of `ImageFacts`."""
    rescale = processor.number("rescale_factor", 1 / 255) if processor.boolean("do_rescale", True) else 1.0
    return {
        "resample": processor.integer("resample", _default_resample(processor), low=0, high=5),
        "rescale": rescale,
        "normalize": processor.boolean("do_normalize", True),
        "mean": _channels(processor, "image_mean", defaults.mean, positive=False),
        "std": _channels(processor, "image_std", defaults.std, positive=True),
    }


def _default_resample(processor: Fields) -> int:
    """Choose as transformers does: the class's filter if the field is absent, bilinear if it is null."""
    return BILINEAR if "resample" in processor.values else BICUBIC


def read_longest(processor: Fields) -> tuple[int, int]:
    """Read the height and width that a picture is scaled down to fit: `longest_edge`, or height and width."""
    defaults = KINDS["PixtralImageProcessor"]
    value = processor.get("size")
    sizes = _sizes(processor, "size", defaults.size if value is None else value)
    if sizes.keys() == {"longest_edge"}:
        return sizes["longest_edge"], sizes["longest_edge"]
    if sizes.keys() == {"height", "width"}:
        return sizes["height"], sizes["width"]
    raise processor.fail("size", "an object of longest_edge, or of height and width")


def _sizes(processor: Fields, name: str, value: Any) -> dict[str, int]:
    if isinstance(value, list):
        value = dict(zip(("height", "width"), value, strict=True)) if len(value) == 2 else None
    if not isinstance(value, dict):
        raise processor.fail(name, "a size, or an object of height and width or shortest_edge")
    fields = Fields(value, f"{processor.where}: {name}")
    return {key: fields.integer(key, high=1 << 14) for key in value if key in fields}


def _crop_size(processor: Fields, defaults: Defaults) -> tuple[int, int]:
    value = processor.get("crop_size")
    value = defaults.crop_size if value is None else value
    if isinstance(value, int):
        value = {"height": value, "width": value}
    sizes = _sizes(processor, "crop_size", value)
    if sizes.keys() != {"height", "width"}:
        raise processor.fail("crop_size", "a size, or an object of height and width")
    return sizes["height"], sizes["width"]


def _resize(processor: Fields, defaults: Defaults) -> tuple[Resize, int, int]:
    value = processor.get("size")
    value = defaults.size if value is None else value
    if isinstance(value, int):
        value = {"shortest_edge": value}
    sizes = _sizes(processor, "size", value)
    if sizes.keys() == {"shortest_edge"}:
        return "shortest_edge", sizes["shortest_edge"], sizes["shortest_edge"]
    if sizes.keys() == {"height", "width"}:
        return "exact", sizes["height"], sizes["width"]
    raise processor.fail("size", "a size, or an object of height and width, or of shortest_edge alone")


def _check_size(processor: Fields, name: str, found: tuple[int, int], size: int) -> None:
    if found != (size, size):
        raise CheckpointError(
            f"{processor.where}: {name} is {found[0]} x {found[1]}, the tower's image_size {size}; "
            "they must be equal"
        )


def _channels(
    processor: Fields, name: str, default: list[float], positive: bool
) -> tuple[float, float, float]:
    value = processor.get(name)
    value = default if value is None else value
    value = value if isinstance(value, list) else [value] * 3
    wanted = f"3 numbers {'above 0' if positive else 'from -1e6 to 1e6'}"
    if len(value) != 3:
        raise processor.fail(name, wanted)
    fields = Fields(dict(zip("012", value, strict=True)), f"{processor.where}: {name}")
    first, second, third = (fields.number(key, above=0.0 if positive else -1e6, high=1e6) for key in "012")
    return first, second, third
