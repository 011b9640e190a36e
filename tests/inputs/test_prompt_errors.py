"""Every fault of a prompt is reported in one line."""

import msgspec
import pytest
from test_tokenizer import tokenizer

from vlkv.errors import PromptError
from vlkv.inputs.layouts import Layout, lay_out
from vlkv.inputs.prompt import LEAST_CHARACTERS, build_prompt, check_size, media_of
from vlkv.storage.image_facts import ImageFacts


def layouts(count: int) -> tuple[Layout, ...]:
    """Returns the layouts of a number of pictures."""
    return lay_out([(9, 9)] * count, FACTS)


FACTS = ImageFacts(
    token_id=4,
    token="<image>",
    tile_features=4,
    height=28,
    width=28,
    resize="shortest_edge",
    resize_height=28,
    resize_width=28,
    crop=True,
    pad_to_square=False,
    resample=3,
    rescale=1 / 255,
    normalize=True,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ eos_token }}{% endfor %}"
)
KEEPS_ORDER = (
    "{% for m in messages %}\n  {% for part in m.content %}\n"
    "{{ '<image>' if part['type'] == 'image' else part['text'] | trim }}\n  {% endfor %}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n{% generation %}A:{% endgeneration %}\n{% endif %}"
)
STRINGS = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
PRINTS = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"


def build(text: str, images: int = 0, **options: object) -> str:
    return build_prompt(text, media_of(layouts(images), FACTS), tokenizer("byte-level"), **options).text  # type: ignore[arg-type]


def refusal(text: str, images: int = 0, **options: object) -> str:
    with pytest.raises(PromptError) as caught:
        build(text, images, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty(text: str) -> None:
    assert "empty" in refusal(text)
    assert "empty" in refusal(text, 1, chat_template=LLAVA)
    assert "empty" in refusal("", raw=True)
    assert build("\n", raw=True) == "\n"


def test_numbers_that_differ_are_both_named() -> None:
    assert refusal("<image> and <image>?", 1) == "prompt has 2 <image> for 1 given picture"
    assert refusal("<image>?", 3) == "prompt has 1 <image> for 3 given pictures"
    assert refusal("<image>?", 0, chat_template=LLAVA) == "prompt has 1 <image> for 0 given pictures"
    assert refusal("<image>?", 2, raw=True)


@pytest.mark.parametrize("limit", [8, 9])
def test_longer_than_the_positions(limit: int) -> None:
    text = "<image><image>"
    if limit == 9:
        assert build(text, 2, max_positions=9) == text
        return
    said = refusal(text, 2, max_positions=8)
    assert said == "prompt has 9 tokens, 8 (4 + 4) of them pictures; the model has 8 positions"


def test_a_megabyte_is_too_long_and_no_crash() -> None:
    assert "positions" in refusal("what is the total? " * 55_000, 1, max_positions=4096, chat_template=LLAVA)


def test_lone_surrogates() -> None:
    assert "lone surrogate U+D800" in refusal("a\ud800", chat_template=LLAVA)
    assert "is the byte 0xff, which is not UTF-8" in refusal("a\udcff", chat_template=LLAVA)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% if %}", "chat template: "),
        ("{{ raise_exception('only\nlists') }}", "chat template: only"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0].nothing.at_all }}", "nothing"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'x' %}", "loader"),
    ],
)
def test_a_template_that_fails(template: str, says: str) -> None:
    assert says in refusal("hi", chat_template=template)
    assert refusal("hi", chat_template=template).startswith("chat template: ")


def test_a_template_that_loses_or_doubles_pictures() -> None:
    assert refusal("hi", 2, chat_template="hi") == "chat template makes 0 <image> of 2 pictures"
    doubled = "{% for p in messages[0].content %}<image><image>{% endfor %}"
    assert "chat template makes 4 <image> of 1 picture" in refusal("hi", 1, chat_template=doubled)


def test_a_template_that_only_takes_strings_gets_strings() -> None:
    assert build("hi", 1, chat_template=PRINTS) == "[INST] <image>\nhi [/INST]"
    assert build("hi", 0, chat_template=PRINTS) == "[INST] hi [/INST]"
    assert build("a <image>", 1, chat_template=PRINTS) == "[INST] a <image> [/INST]"
    silent = "U:{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}"
    assert build("hi", 0, chat_template=silent) == "U:hi"


def test_a_token_that_the_tokenizer_does_not_know() -> None:
    other = msgspec.structs.replace(FACTS, token="<picture>")
    with pytest.raises(PromptError, match=r"makes 0 image tokens \(id 4, <picture>\)"):
        build_prompt("hi", media_of(layouts(1), other), tokenizer("byte-level"))


def test_a_text_that_cannot_fit_is_refused_before_the_template_and_the_tokenizer_see_it():
    text = "a" * (LEAST_CHARACTERS + 1)
    for raw in (True, False):
        with pytest.raises(PromptError, match=r"prompt has 65537 characters; the model has 100 positions"):
            build_prompt(text, media_of((), FACTS), None, chat_template=LLAVA, raw=raw, max_positions=100)
    check_size(LEAST_CHARACTERS, 100, 100)
    check_size(10**9, 10**9, None)
    check_size(16 * 10**6, 1, 10**6)
    with pytest.raises(PromptError, match="prompt has 16000001 characters"):
        check_size(16 * 10**6 + 1, 1, 10**6)
    with pytest.raises(PromptError, match="prompt has 101 messages and parts; the model has 100 positions"):
        check_size(1, 101, 100)
