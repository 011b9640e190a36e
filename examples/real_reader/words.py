"""The words that a patch may hold, the token of each word, and the form of the prompt."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from vlkv.eval.forms import Form
from vlkv.eval.word_forms import WordForms, read_word_forms

FORMS = Path(__file__).parent / "forms.json"
BLANK = 0  # the class of a patch with nothing on it

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The package's ChatML template, extended by pictures."""

BEFORE_PICTURE = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"


@cache
def forms() -> WordForms:
    """The checkpoint's kind of form."""
    return read_word_forms(FORMS)


@cache
def texts() -> list[str]:
    """Returns the text of each class of patch."""
    return ["", ":", *"0123456789", *forms().keys, *forms().words]


@cache
def classes() -> dict[str, int]:
    """Returns the class of each text."""
    return {text: number for number, text in enumerate(texts())}


def class_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Returns the token of each class except the blank. A key's token has a space before it, as in a question."""
    keys = set(forms().keys)
    tokens = []
    for text in texts()[1:]:
        found = tokenizer.encode(f" {text}" if text in keys else text, add_special_tokens=False)
        if len(found) != 1:
            raise ValueError(f"{text!r} is {len(found)} tokens")
        tokens += found
    return tokens


def patches(form: Form) -> np.ndarray:
    """Returns the class of each patch of a form, int64 `[576]`."""
    return np.array([classes()[text] for text in forms().grid(form).ravel()], np.int64)
