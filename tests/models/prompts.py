"""Prompts with pictures in every possible place, and transformers' inputs for them."""

from __future__ import annotations

from typing import Any

import torch

from vlkv import Question

LONG = " ".join(f"w{number % 20}" for number in range(60))
CASES: dict[str, tuple[str, int, bool]] = {
    "pictures first": ("what is the total of form w0 w1 w2 w3 w4 w5 w6 w7", 2, False),
    "text between": (f"what <image> is the total <image> of form {LONG}", 2, False),
    "no picture": (LONG, 0, False),
    "question before": (f"{LONG} <image>", 1, False),
    "one token after": ("what is the total name date city of form <image> yes", 1, True),
    "picture ends it": ("what is the total name date city of form <image>", 1, True),
}
"""Text, number of pictures, and whether the prompt bypasses the chat template."""


def question(case: str, pictures: list[Any], **fields: Any) -> Question:
    """Returns the question of a case."""
    text, count, raw = CASES[case]
    return Question(text, pictures[:count], raw=raw, **fields)


def inputs(engine: Any, reference: Any, asked: Question) -> dict[str, Any]:
    """Returns transformers' inputs: this engine's ids, which `test_parity` compares, and its processor's pixels."""
    ids = torch.from_numpy(engine.prompt(asked).token_ids)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if asked.images:
        given["pixel_values"] = reference.inputs("what", asked.images)["pixel_values"]
    return given
