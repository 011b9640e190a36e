"""Prompts have the same token ids as those of transformers' LlavaProcessor."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_prompt_errors import FACTS, KEEPS_ORDER, LLAVA, STRINGS, WITH_BOS, layouts
from test_tokenizer import backend, tokenizer

from vlkv.inputs.prompt import build_prompt, media_of
from vlkv.inputs.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

KINDS = ("byte-level", "byte-fallback", "characters")
TEMPLATES = {"llava": LLAVA, "bos": WITH_BOS, "order": KEEPS_ORDER}
PICTURE = Image.new("RGB", (28, 28))


@cache
def processor(kind: str) -> Any:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend(kind),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    )
    return LlavaProcessor(
        pictures,
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="unused",
    )


def reference(kind: str, text: str, images: int, template: str | None) -> list[int]:
    """Returns the ids that transformers gives for the plain text or through its chat template."""
    if template is None:
        placed = text if "<image>" in text else "<image>\n" * images + text
        return processor(kind)(text=placed, images=[PICTURE] * images or None)["input_ids"][0]
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    pictures = {}
    if "<image>" in text:
        pictures = {"images": [PICTURE] * images}
    else:
        parts = [{"type": "image", "image": PICTURE}] * images + parts
    return processor(kind).apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=True,
        processor_kwargs=pictures,
    )[0]


words = st.sampled_from(
    ["the total", " ", "\n", "<image>", "<s>", "</s>", "<unk>", "é€😀", "{{ bos }}", "?", "{%"]
)
texts = st.lists(words | st.text(max_size=8), min_size=1, max_size=6).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=texts, images=st.integers(0, 3), name=st.sampled_from([None, *TEMPLATES]))
def test_ids_equal_transformers(kind: str, text: str, images: int, name: str | None) -> None:
    assume(text.strip())
    places = text.count("<image>")
    images = places or images
    template = TEMPLATES[name] if name else None
    # text that begins with BOS gets no second one, even without a template
    assume(template is not None or not text.startswith("<s>") or (images and not places))
    prompt = build_prompt(text, media_of(layouts(images), FACTS), tokenizer(kind), chat_template=template)
    want = reference(kind, text, images, template)
    assert prompt.token_ids.tolist() == list(want)
    assert prompt.token_ids.dtype == np.int64
    assert prompt.image_positions.tolist() == [i for i, index in enumerate(want) if index == FACTS.token_id]
    assert len(prompt.image_positions) == images * FACTS.tile_features
    assert prompt.last_image == (int(prompt.image_positions[-1]) if images else -1)


def test_saved_and_loaded_tokenizers_agree(tmp_path: Path) -> None:
    processor("byte-fallback").tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    special = processor("byte-fallback").tokenizer.special_tokens_map
    assert loaded.special_tokens == special
    prompt = build_prompt("what is the name?", media_of(layouts(2), FACTS), loaded, chat_template=WITH_BOS)
    assert prompt.token_ids.tolist() == list(reference("byte-fallback", "what is the name?", 2, WITH_BOS))


def test_pictures_come_first_or_where_they_are_placed() -> None:
    def text(said: str, images: int, **options: Any) -> str:
        return build_prompt(said, media_of(layouts(images), FACTS), tokenizer("byte-level"), **options).text

    assert text("hi", 2) == "<image>\n<image>\nhi"
    assert text("a <image> b<image>", 2) == "a <image> b<image>"
    assert text("hi", 1, chat_template=LLAVA) == "USER: <image>\nhi ASSISTANT:"
    assert text("hi", 0, chat_template=LLAVA) == "USER: hi ASSISTANT:"
    assert text("a <image> b", 1, chat_template=LLAVA) == "USER: a <image> b ASSISTANT:"
    assert text("hi", 1, chat_template=LLAVA, raw=True) == "<image>\nhi"
    assert text("\n<image>\n", 1, chat_template=LLAVA, raw=True) == "\n<image>\n"
    assert text("hi", 2, chat_template=STRINGS) == "[INST] <image>\n<image>\nhi [/INST]"
    assert (
        text("a <image>{'type': 'text'", 1, chat_template=STRINGS)
        == "[INST] a <image>{'type': 'text' [/INST]"
    )


def test_bos_is_never_doubled() -> None:
    for said, options in [("<s>hi", {}), ("hi", {"chat_template": WITH_BOS}), ("<s>hi", {"raw": True})]:
        prompt = build_prompt(said, media_of((), FACTS), tokenizer("byte-level"), **options)  # type: ignore[arg-type]
        assert prompt.token_ids.tolist().count(1) == 1


def test_template_helpers_are_those_of_transformers() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "    {% generation %}\n"
        "{{ m.content | tojson }}{% set seen = 1 %}{% endgeneration %}\n"
        "{{ strftime_now('%Y')|length }}{{ seen }}{{ bos_token }}{{ missing }}{{ tools is none }}{% endfor %}"
    )
    text = "é<b>'\""
    prompt = build_prompt(text, media_of((), FACTS), tokenizer("byte-level"), chat_template=template)
    want = reference("byte-level", text, 0, template)
    assert prompt.token_ids.tolist() == list(want)
    assert prompt.text.endswith("4<s>True")


@pytest.mark.parametrize(
    ("template", "before"),
    [
        ("{% for m in messages %}USER: {{ image_token }}{{ m['content'] }}{% endfor %}", "USER: "),
        ("<image>{{ messages[0]['content'] }}", ""),
    ],
)
def test_templates_that_place_the_picture_themselves(template: str, before: str) -> None:
    prompt = build_prompt(
        "what is it?", media_of(layouts(1), FACTS), tokenizer("byte-level"), chat_template=template
    )
    assert prompt.text == f"{before}<image>what is it?"
