"""Image processors, chat templates, special ids and tokenizer files in all the forms that checkpoints have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from models import sparse
from vlkv.errors import CheckpointError
from vlkv_export.models import read_checkpoint

KINDS = (None, "CLIPImageProcessor", "CLIPImageProcessorFast", "LlavaImageProcessor")
BILINEAR = 2
SQUARE = {"height": 28, "width": 28}
CLIP_28 = {"size": 28, "crop_size": 28}
GOOD: dict[str, dict[str, Any]] = {
    "integers": {"size": 28, "crop_size": 28},
    "objects": {"size": {"shortest_edge": 28}, "crop_size": SQUARE},
    "larger edge": {"size": {"shortest_edge": 40}, "crop_size": SQUARE},
    "exact and cropped": {"size": {"height": 32, "width": 48}, "crop_size": SQUARE},
    "exact": {"size": SQUARE, "do_center_crop": False},
    "a list": {"size": [28, 28], "do_center_crop": False},
    "cropped only": {"do_resize": False, "crop_size": SQUARE},
    "as it is": {"do_resize": False, "do_center_crop": False},
    "no rescale": {**CLIP_28, "do_rescale": False},
    "no normalize": {**CLIP_28, "do_normalize": False},
    "numbers": {
        **CLIP_28,
        "resample": 2,
        "rescale_factor": 1 / 127.5,
        "image_mean": [1, 1.0, 0.5],
        "image_std": [0.25] * 3,
    },
    "one mean": {**CLIP_28, "image_mean": 0.5, "image_std": 0.25},
    "nulls": {**CLIP_28, "resample": None, "do_pad": None},
}


def place(tmp_path: Path, values: dict[str, Any]) -> Path:
    folder = sparse.write(tmp_path / "checkpoint", sparse.SMALL)
    sparse.dump(folder / "preprocessor_config.json", values)
    return folder


@pytest.mark.parametrize(
    "kind", ["CLIPImageProcessor", "CLIPImageProcessorFast", "LlavaImageProcessor", None]
)
@pytest.mark.parametrize("case", GOOD)
def test_facts_equal_the_processors(kind: str | None, case: str, tmp_path: Path) -> None:
    values = GOOD[case] if kind is None else {**GOOD[case], "image_processor_type": kind}
    image = read_checkpoint(place(tmp_path, values)).image
    make = LlavaImageProcessorPil if kind and "Llava" in kind else CLIPImageProcessorPil
    theirs = make(**GOOD[case])
    assert (image.resize != "none") == theirs.do_resize
    if theirs.do_resize:
        size = theirs.size
        expected = ("shortest_edge", size.shortest_edge, size.shortest_edge)
        if size.shortest_edge is None:
            expected = ("exact", size.height, size.width)
        assert (image.resize, image.resize_height, image.resize_width) == expected
    assert image.crop == theirs.do_center_crop
    if theirs.do_center_crop:
        assert (image.height, image.width) == (theirs.crop_size.height, theirs.crop_size.width)
    assert image.rescale == (theirs.rescale_factor if theirs.do_rescale else 1.0)
    assert image.normalize == theirs.do_normalize
    assert image.resample == (BILINEAR if theirs.resample is None else theirs.resample)
    means, deviations = theirs.image_mean, theirs.image_std
    assert image.mean == (tuple(means) if not isinstance(means, float) else (means,) * 3)
    assert image.std == (tuple(deviations) if not isinstance(deviations, float) else (deviations,) * 3)
    assert not image.pad_to_square
    assert (image.height, image.width, image.tile_features) == (28, 28, 4)


def test_padding_to_a_square(tmp_path: Path) -> None:
    values = {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True, **CLIP_28}
    image = read_checkpoint(place(tmp_path, values)).image
    assert image.pad_to_square and image.crop and image.resize == "shortest_edge"
    image = read_checkpoint(place(tmp_path, {**values, "do_center_crop": False})).image
    assert image.pad_to_square and not image.crop
    assert (image.resize, image.resize_height, image.resize_width) == ("exact", 28, 28)
    clip = {**CLIP_28, "do_pad": True}
    assert not read_checkpoint(place(tmp_path, clip)).image.pad_to_square, "pads to the batch: no effect"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_processor_type": "ViTImageProcessor"},
            "'ViTImageProcessor' is not supported",
        ),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "'ViTFeatureExtractor' is not supported"),
        ({}, "crop_size is 224 x 224, the tower's image_size 28"),
        ({"crop_size": 28, "size": 0}, "shortest_edge is 0"),
        ({"crop_size": 28, "size": {"longest_edge": 3}}, "size is {'longest_edge': 3}"),
        ({"crop_size": 28, "size": {"shortest_edge": 28, "longest_edge": 30}}, "shortest_edge alone"),
        ({"crop_size": 28, "size": True}, "size is True|shortest_edge is True"),
        ({"crop_size": {"height": 28}}, "crop_size is {'height': 28}"),
        ({"crop_size": "28"}, "crop_size is '28'"),
        ({"do_center_crop": False, "size": 28}, "do_center_crop false gives pictures of any width"),
        ({"do_center_crop": False, "size": {"height": 28, "width": 30}}, "size is 28 x 30"),
        ({"do_center_crop": 1}, "do_center_crop is 1; it must be true or false"),
        ({**CLIP_28, "resample": 9}, "resample is 9"),
        ({**CLIP_28, "image_mean": [1, 2]}, r"image_mean is \[1, 2\]; it must be 3 numbers"),
        ({**CLIP_28, "image_std": [1, 2, 0]}, "image_std"),
        ({**CLIP_28, "rescale_factor": 0}, "rescale_factor is 0"),
        ({**CLIP_28, "do_pad": True, "pad_size": SQUARE}, "pad_size"),
    ],
)
def test_processors_that_do_not_fit(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(place(tmp_path, values))


def test_nested_before_single(tmp_path: Path) -> None:
    folder = place(tmp_path, {**CLIP_28, "resample": 0})
    sparse.dump(folder / "processor_config.json", {"patch_size": None, "image_token": "<image>"})
    assert read_checkpoint(folder).image.resample == 0
    sparse.dump(folder / "processor_config.json", {"image_processor": {**CLIP_28, "resample": 1}})
    assert read_checkpoint(folder).image.resample == 1
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither preprocessor_config.json nor an image_processor in"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("select", "layers", "tokens"),
    [("default", -2, 4), ("full", -2, 5), ("default", [0, -1], 4), ("full", [1, 1, 2], 5)],
)
def test_image_tokens(select: str, layers: int | list[int], tokens: int, tmp_path: Path) -> None:
    config = sparse.changed(sparse.SMALL, vision_feature_select_strategy=select, vision_feature_layer=layers)
    checkpoint = read_checkpoint(sparse.write(tmp_path, config))
    assert checkpoint.image.tile_features == tokens == checkpoint.vision.tokens
    assert checkpoint.vision.feature_layers == {-2: (1,)}.get(layers) if isinstance(layers, int) else True


def test_chat_templates_in_order(tmp_path: Path) -> None:
    """The order is that of transformers' processor. The tokenizer's own template comes last."""
    folder = sparse.write(tmp_path, sparse.SMALL)
    assert read_checkpoint(folder).chat_template is None
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "listed"}]
    sparse.dump(folder / "tokenizer_config.json", {"chat_template": listed})
    assert read_checkpoint(folder).chat_template == "listed"
    sparse.dump(folder / "tokenizer_config.json", {"chat_template": "tokenizer"})
    assert read_checkpoint(folder).chat_template == "tokenizer"
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "default.jinja").write_text("folder")
    assert read_checkpoint(folder).chat_template == "folder"
    (folder / "chat_template.jinja").write_text("jinja é", encoding="utf-8")
    assert read_checkpoint(folder).chat_template == "jinja é"
    sparse.dump(folder / "chat_template.json", {"chat_template": "json"})
    assert read_checkpoint(folder).chat_template == "json"
    sparse.dump(folder / "processor_config.json", {"chat_template": {"default": "processor"}})
    assert read_checkpoint(folder).chat_template == "processor"
    sparse.dump(folder / "processor_config.json", {"chat_template": 7})
    with pytest.raises(CheckpointError, match="chat_template is 7"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("generation", "config", "text", "expected"),
    [
        (None, {}, {}, (1, (2,), 0)),
        (None, {}, {"eos_token_id": [4, 5]}, (1, (4, 5), 0)),
        (None, {"eos_token_id": 6}, {"eos_token_id": [4, 5]}, (1, (6,), 0)),
        ({"eos_token_id": [7, 8, 7], "bos_token_id": 3}, {"eos_token_id": 6}, {}, (3, (7, 8), 0)),
        ({"eos_token_id": None}, {"eos_token_id": 6}, {}, (1, (6,), 0)),
        ({"pad_token_id": -1, "bos_token_id": -1}, {}, {}, (None, (2,), None)),
    ],
)
def test_special_ids(generation: Any, config: Any, text: Any, expected: Any, tmp_path: Path) -> None:
    folder = sparse.write(tmp_path, sparse.changed(sparse.SMALL, **config, text_config=text))
    if generation is not None:
        sparse.dump(folder / "generation_config.json", generation)
    tokens = read_checkpoint(folder).tokens
    assert (tokens.bos, tokens.eos, tokens.pad) == expected


@pytest.mark.parametrize("value", [12, "2", 2.0, [1, None], [[1]], True])
def test_ids_outside_the_vocabulary(value: Any, tmp_path: Path) -> None:
    folder = sparse.write(tmp_path, sparse.SMALL)
    sparse.dump(folder / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(CheckpointError, match=r"eos_token_id is .* vocabulary of 12"):
        read_checkpoint(folder)


def test_tokenizer_files(tmp_path: Path) -> None:
    folder = sparse.write(tmp_path, sparse.SMALL)
    assert read_checkpoint(folder).tokenizer_files == ("tokenizer.json",)
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.model"):
        (folder / name).write_text("{}")
    files = read_checkpoint(folder).tokenizer_files
    assert files[:2] == ("tokenizer.json", "tokenizer_config.json")
    assert set(files[2:]) == {"special_tokens_map.json", "added_tokens.json"}
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    sparse.dump(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    with pytest.raises(CheckpointError, match="no added token of id 9"):
        read_checkpoint(folder)
    (folder / "tokenizer.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        read_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="is not a sentencepiece model"):
        read_checkpoint(folder)
