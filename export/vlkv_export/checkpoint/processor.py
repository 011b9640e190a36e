"""How a picture is prepared: `processor_config.json` or `preprocessor_config.json` to `ImageFacts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlkv.errors import CheckpointError
from vlkv.storage.manifest import ImageFacts
from vlkv_export.checkpoint.facts import VisionConfig
from vlkv_export.checkpoint.fields import Fields, read_object, show

TYPES = ("CLIPImageProcessor", "LlavaImageProcessor", "CLIPFeatureExtractor")
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
BILINEAR, BICUBIC = 2, 3
DEFAULT_EDGE = 224

Resize = Literal["none", "shortest_edge", "exact"]


def read_processor(folder: Path) -> Fields:
    """Read the image processor's fields: nested in `processor_config.json`, else `preprocessor_config.json`.

    Raises `CheckpointError` when neither is there.
    """
    combined, single = folder / "processor_config.json", folder / "preprocessor_config.json"
    if combined.exists():
        fields = Fields(read_object(combined), str(combined))
        if "image_processor" in fields:
            return fields.child("image_processor")
    if single.exists():
        return Fields(read_object(single), str(single))
    raise CheckpointError(f"{folder} has neither {single.name} nor an image_processor in {combined.name}")


def read_image(processor: Fields, vision: VisionConfig, token_id: int, token: str) -> ImageFacts:
    """Say what the runtime does to a picture, and how many tokens one picture is.

    The number of tokens follows from the tower alone: the square of whole patches, and the class token
    where the select strategy keeps it. A list of feature layers widens features, it adds no tokens;
    `patch_size`, `num_additional_image_tokens` and the strategy of the processor are not consulted.
    Raises `CheckpointError` where the processor's pictures would not fit the tower.
    """
    _check_type(processor)
    square = "llava" in processor.string("image_processor_type", "").lower() and processor.boolean(
        "do_pad", False
    )
    if not square and processor.boolean("do_pad", False) and "pad_size" in processor:
        raise CheckpointError(
            f"{processor.where}: pad_size {show(processor.get('pad_size'))} is not supported"
        )
    size = vision.image_size
    crop = processor.boolean("do_center_crop", True)
    if crop:
        _check_size(processor, "crop_size", _crop_size(processor), size)
    resize: Resize = "none"
    height = width = size
    if processor.boolean("do_resize", True):
        resize, height, width = _resize(processor)
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
        token_id=token_id,
        token=token,
        tokens_per_image=vision.tokens,
        height=size,
        width=size,
        resize=resize,
        resize_height=height,
        resize_width=width,
        crop=crop,
        pad_to_square=square,
        resample=processor.integer("resample", _default_resample(processor), low=0, high=5),
        rescale=processor.number("rescale_factor", 1 / 255) if processor.boolean("do_rescale", True) else 1.0,
        normalize=processor.boolean("do_normalize", True),
        mean=_channels(processor, "image_mean", CLIP_MEAN, positive=False),
        std=_channels(processor, "image_std", CLIP_STD, positive=True),
    )


def _default_resample(processor: Fields) -> int:
    """Choose as transformers does: the class's filter where nothing is said, bilinear where null is."""
    return BILINEAR if "resample" in processor.values else BICUBIC


def _check_type(processor: Fields) -> None:
    name = "image_processor_type" if "image_processor_type" in processor else "feature_extractor_type"
    kind = processor.string(name, TYPES[0])
    if kind.removesuffix("Fast").removesuffix("Pil") not in TYPES:
        raise CheckpointError(
            f"{processor.where}: image processor {show(kind)} is not supported; supported: {', '.join(TYPES)}"
        )


def _sizes(processor: Fields, name: str, value: Any) -> dict[str, int]:
    if isinstance(value, list):
        value = dict(zip(("height", "width"), value, strict=True)) if len(value) == 2 else None
    if not isinstance(value, dict):
        raise processor.fail(name, "a size, or an object of height and width or shortest_edge")
    fields = Fields(value, f"{processor.where}: {name}")
    return {key: fields.integer(key, high=1 << 14) for key in value if key in fields}


def _crop_size(processor: Fields) -> tuple[int, int]:
    value = processor.get("crop_size")
    value = DEFAULT_EDGE if value is None else value
    if isinstance(value, int):
        value = {"height": value, "width": value}
    sizes = _sizes(processor, "crop_size", value)
    if sizes.keys() != {"height", "width"}:
        raise processor.fail("crop_size", "a size, or an object of height and width")
    return sizes["height"], sizes["width"]


def _resize(processor: Fields) -> tuple[Resize, int, int]:
    value = processor.get("size")
    value = DEFAULT_EDGE if value is None else value
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
