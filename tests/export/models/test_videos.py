"""What a checkpoint says of videos: where it says it, and what keeps an engine to pictures, told in a line."""

from __future__ import annotations

import json
import shutil

import pytest

from models import families
from vlkv_export.checkpoint.names import canonical
from vlkv_export.models import read_checkpoint
from vlkv_export.models.registry import FAMILIES

NAME = "video_preprocessor_config.json"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    base = tmp_path_factory.mktemp("videos")
    return {name: families.build(name, base / name) for name in families.WITH_VIDEOS}


@pytest.fixture
def changed(checkpoints, tmp_path):
    """A checkpoint's folder with the fields of one JSON file changed; None takes a field out."""

    def make(name, file, **fields):
        folder = shutil.copytree(checkpoints[name], tmp_path / "checkpoint", dirs_exist_ok=True)
        values = json.loads((folder / file).read_text()) | fields
        (folder / file).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        return folder

    return make


def test_rules_of_the_families(checkpoints):
    rules = {name: read_checkpoint(folder).video for name, folder in checkpoints.items()}
    onevision, pooled, own = rules["onevision"], rules["next-video"], rules["video-llava"]
    assert (onevision.grid, onevision.scaled, onevision.newline) == ((3, 3), (2, 2), 9)
    assert (pooled.begin, pooled.grid, pooled.frame.tile_features) == (36, (3, 3), 46)
    assert (own.graph, own.prefix, own.grid, own.frame.tile_features) == ("video", 1, (3, 3), 10)
    assert {rule.frame.token for rule in rules.values()} == {families.VIDEO}
    assert all(rule.sampled is None and rule.rate is None for rule in rules.values())


@pytest.mark.parametrize(
    ("fields", "sampled", "rate"),
    [
        ({"do_sample_frames": True, "num_frames": 8}, 8, None),
        ({"do_sample_frames": True, "fps": 2}, None, 2.0),
        ({"do_sample_frames": True}, None, None),
        ({"do_sample_frames": False, "num_frames": 8}, None, None),
        ({"num_frames": 8}, None, None),
    ],
)
def test_sampling(changed, fields, sampled, rate):
    video = read_checkpoint(changed("onevision", NAME, **fields)).video
    assert (video.sampled, video.rate) == (sampled, rate)


def test_where_the_video_processor_is_looked_for(changed):
    """Nested in processor_config.json, else a file of its own, else the image processor's."""
    folder = changed("video-llava", NAME, image_mean=[0.25] * 3)
    assert read_checkpoint(folder).video.frame.mean == (0.25,) * 3
    nested = json.loads((folder / NAME).read_text()) | {"image_mean": [0.75] * 3}
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": nested}))
    assert read_checkpoint(folder).video.frame.mean == (0.75,) * 3
    (folder / "processor_config.json").unlink()
    (folder / NAME).unlink()
    found = read_checkpoint(folder)
    assert found.video.frame.mean == found.image.mean


@pytest.mark.parametrize(
    ("name", "file", "fields", "said"),
    [
        (
            "onevision",
            NAME,
            {"video_processor_type": "OtherVideoProcessor"},
            "'OtherVideoProcessor' is not supported",
        ),
        (
            "onevision",
            NAME,
            {"size": {"height": 14, "width": 14}},
            "size is 14 x 14, the tower's image_size 42",
        ),
        ("next-video", NAME, {"crop_size": None}, "crop_size is 224 x 224, the tower's image_size 84"),
        ("onevision", NAME, {"do_sample_frames": True, "num_frames": 0}, "num_frames is 0"),
        (
            "video-llava",
            "config.json",
            {"video_token_index": 31},
            "no added token of id 31, config.json's video token",
        ),
        ("next-video", "config.json", {"spatial_pool_stride": 7}, "at most the tower's 6 patches a side"),
    ],
)
def test_pictures_alone(changed, name, file, fields, said):
    found = read_checkpoint(changed(name, file, **fields))
    assert found.video is None
    (note,) = found.notes
    assert note.startswith("videos are not taken: ") and said in note
    # neither pooled rows nor a tower that nothing needs
    assert found.image.tile_features == {"onevision": 10, "next-video": 37, "video-llava": 9}[name]
    assert not any(tensor.startswith("video.") for tensor in found.tensors)


def test_one_file_of_2024_for_pictures_and_videos(changed):
    folder = changed(
        "next-video", "preprocessor_config.json", image_processor_type="LlavaNextVideoImageProcessor"
    )
    want = read_checkpoint(folder)
    (folder / NAME).unlink()
    found = read_checkpoint(folder)
    assert found.video == want.video is not None and found.image == want.image


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("model.image_tower.pre_layrnorm.weight", "vision.pre_layrnorm.weight"),
        ("image_tower.vision_model.pre_layrnorm.weight", "vision.pre_layrnorm.weight"),
        ("model.video_tower.encoder.layers.0.mlp.fc1.bias", "video.encoder.layers.0.mlp.fc1.bias"),
        ("video_tower.vision_model.encoder.layers.0.mlp.fc1.bias", "video.encoder.layers.0.mlp.fc1.bias"),
        ("language_model.model.norm.weight", "text.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_both_generations(name, want):
    assert canonical(name, FAMILIES["VideoLlavaForConditionalGeneration"].prefixes) == want
    pooled = FAMILIES["LlavaNextVideoForConditionalGeneration"].prefixes
    assert canonical("vision_resampler.pool.weight", pooled) == "resampler.pool.weight"
    assert canonical("model.vision_resampler.pool.weight", pooled) == "resampler.pool.weight"
