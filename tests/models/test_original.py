"""Checkpoints of the original LLaVA: prompts, pixels and greedy tokens as its code makes them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models import families, originals
from vlkv import Engine, Question
from vlkv.errors import CheckpointError
from vlkv.inputs.preprocess import pixel_values
from vlkv.inputs.prompt import render
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine
from vlkv_export.models import read_checkpoint
from vlkv_export.models.families import original

STEPS = 24
PROMPTS = {
    "none": ("what is the total", []),
    "wide": ("<image>\nwhat is the total", ["wide"]),
    "tall": ("what <image> is the total", ["tall"]),
    "dot": ("<image>\nname of form", ["dot"]),
    "large": ("<image>\ndate of form", ["large"]),
    "three": ("<image> a <image> b\n<image>\nname of", ["exact", "odd", "tall"]),
}
every = pytest.mark.parametrize("name", originals.KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("originals")

    @cache
    def make(name):
        found = originals.build(name, base / name)
        notes: list[str] = []
        export_checkpoint(found.folder, base / f"{name}.graphs", tell=notes.append, tower=found.tower)
        build_engine(base / f"{name}.graphs", base / f"{name}.engine")
        return found, Engine.load(base / f"{name}.engine", threads=1), notes

    return make


@every
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_pixels_and_greedy_tokens(name, prompt, made):
    checkpoint, engine, _ = made(name)
    text, names = PROMPTS[prompt]
    pictures = [families.picture(each) for each in names]
    whole = originals.conversation(checkpoint, text)
    given = originals.inputs(checkpoint, whole, pictures)
    question = Question(text, pictures, policy="full", max_new_tokens=STEPS)
    laid = engine.prompt(question)
    assert laid.text == whole
    ids = given["input_ids"][0].numpy()
    np.testing.assert_array_equal(np.where(ids == originals.IMAGE, 0, ids), laid.token_ids)
    assert laid.image_positions.tolist() == np.flatnonzero(ids == originals.IMAGE).tolist()
    for picture, layout in zip(pictures, laid.pictures, strict=True):
        mine = pixel_values(picture, layout, engine.manifest.image)
        np.testing.assert_allclose(mine, originals.pixels(checkpoint, picture), rtol=0, atol=1e-5)
    assert engine.generate_batch([question])[0].token_ids == originals.generate(checkpoint, given, STEPS)


TURNS = [("user", "<image>\nwhat is it"), ("assistant", "a form"), ("user", "and the date")]
SYSTEM = originals.SYSTEM
TEMPLATES = {
    original.VICUNA: f"{SYSTEM} USER: <image>\nwhat is it ASSISTANT: a form</s>USER: and the date ASSISTANT:",
    original.MISTRAL_INSTRUCT: "[INST] <image>\nwhat is it [/INST] a form </s>[INST] and the date [/INST]",
    original.CHATML: "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nwhat is it"
    "<|im_end|><|im_start|>assistant\na form<|im_end|><|im_start|>user\nand the date<|im_end|>"
    "<|im_start|>assistant\n",
}
"""What `Conversation.get_prompt` gives for `TURNS` and an answer that is to come."""


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_the_conversations_of_the_original(template):
    plain = [{"role": role, "content": text} for role, text in TURNS]
    assert render(template, plain, {}) == TEMPLATES[template]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]
    parts[0]["content"] = [{"type": "image"}, {"type": "text", "text": "what is it"}]
    assert render(template, parts, {}) == TEMPLATES[template]
    spoken = render(template, [{"role": "system", "content": "Be brief."}, *plain], {})
    assert "Be brief." in spoken and "Answer the" not in spoken and "A chat" not in spoken


def test_a_conversation_goes_on(made):
    checkpoint, engine, _ = made("v1.5")
    chat = engine.chat(policy="full")
    picture = families.picture("wide")
    first = chat.ask("what is the total", [picture], max_new_tokens=4).token_ids
    whole = originals.conversation(checkpoint, "<image>\nwhat is the total")
    given = originals.inputs(checkpoint, whole, [picture])
    assert first == originals.generate(checkpoint, given, 4)
    chat.ask("what is the date", max_new_tokens=4)
    assert chat.token_ids[: given["input_ids"].shape[1]].tolist() == [
        0 if token == originals.IMAGE else token for token in given["input_ids"][0].tolist()
    ]


def test_the_conversation_is_told_unless_the_folder_has_a_template(made, tmp_path):
    checkpoint, _, notes = made("v1.6-mistral")
    assert [note for note in notes if "mistral_instruct" in note]
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.folder, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    found = read_checkpoint(folder, checkpoint.tower)
    assert found.chat_template == "{{ messages[0]['content'] }}" and not found.notes


def test_chatml_where_the_tokenizer_has_its_tokens(made, tmp_path):
    checkpoint, _, _ = made("v1.5")
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 5, "content": "<|im_start|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_checkpoint(folder, checkpoint.tower).chat_template == original.CHATML


def test_the_tower_has_to_be_given(made):
    checkpoint, _, _ = made("v1.5")
    with pytest.raises(CheckpointError, match=r"'openai/clip-tiny' lies in a repository .* --tower FOLDER$"):
        read_checkpoint(checkpoint.folder)
    with pytest.raises(CheckpointError, match="absent does not exist"):
        read_checkpoint(checkpoint.folder, checkpoint.tower / "absent")


def test_a_known_tower_inside_needs_no_folder(made, tmp_path, monkeypatch):
    checkpoint, _, _ = made("v1.6-mistral")
    vision = json.loads((checkpoint.tower / "config.json").read_text())
    known = "openai/clip-vit-large-patch14-336"
    monkeypatch.setitem(original.KNOWN_TOWERS, known, vision)
    folder = edited(checkpoint.folder, tmp_path / "inside", mm_vision_tower=known)
    alone, beside = read_checkpoint(folder), read_checkpoint(folder, checkpoint.tower)
    assert alone.image == beside.image and alone.tensors == beside.tensors and not alone.elsewhere
    outside = edited(made("v1.5")[0].folder, tmp_path / "outside", mm_vision_tower=known)
    with pytest.raises(CheckpointError, match="--tower FOLDER"):
        read_checkpoint(outside)


def test_a_tower_for_a_checkpoint_that_has_one(tmp_path):
    folder = families.build("llava-siglip-qwen2", tmp_path / "siglip")
    with pytest.raises(CheckpointError, match="holds its vision tower itself"):
        read_checkpoint(folder, tmp_path)


REFUSED = {
    "mm_use_im_start_end": (True, "mm_use_im_start_end true is not supported"),
    "s2": (True, "s2 true is not supported"),
    "mm_projector_type": ("identity", "mm_projector_type 'identity' is not supported"),
    "mm_patch_merge_type": ("spatial", "image_aspect_ratio 'pad' with mm_patch_merge_type 'spatial'"),
    "image_aspect_ratio": ("anyres", "image_aspect_ratio 'anyres' with mm_patch_merge_type 'flat'"),
    "mm_vision_select_feature": ("all", "it must be 'patch' or 'cls_patch'"),
    "mm_vision_select_layer": (-9, "-4 to 3"),
    "mm_vision_tower": (7, "mm_vision_tower is 7"),
    "quantization_config": ({"quant_method": "awq"}, "awq"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, made, tmp_path):
    value, message = REFUSED[name]
    checkpoint, _, _ = made("v1.5")
    folder = edited(checkpoint.folder, tmp_path / "edited", **{name: value})
    tower = None if name == "mm_vision_tower" else checkpoint.tower
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder, tower)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pinpoints", ["[[42, 84]", "os.system('x')", [[42, "84"]], [42, 84], 7, None, [[40, 84]]]
)
def test_pinpoints_that_are_wrong(pinpoints, made, tmp_path):
    checkpoint, _, _ = made("v1.6-vicuna")
    folder = edited(checkpoint.folder, tmp_path / "edited", image_grid_pinpoints=pinpoints)
    with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
        read_checkpoint(folder, checkpoint.tower)


def test_a_tower_of_another_kind(made, tmp_path):
    checkpoint, _, _ = made("v1.5")
    tower = edited(checkpoint.tower, tmp_path / "tower", model_type="siglip")
    with pytest.raises(CheckpointError, match="model_type 'siglip' is no CLIP tower"):
        read_checkpoint(checkpoint.folder, tower)


def edited(folder: Path, copy: Path, **fields: object) -> Path:
    """A copy of a folder with other fields in its `config.json`."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | fields
    (copy / "config.json").write_text(json.dumps(config))
    return copy
