"""Asks a checkpoint about held-out forms through transformers: PNG file, processor, `generate`.

$ python -m examples.tiny_vlm.check examples/tiny_vlm/checkpoint --first 0 --forms 500
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from vlkv.eval.forms import QUESTION, Form, draw, held_out_form, one_question

from .tokens import prompt


def png_picture(form: Form) -> Image.Image:
    """Returns the form's picture after it was written to and read from a PNG file."""
    file = BytesIO()
    draw(form).save(file, format="PNG")
    return Image.open(file)


def model_inputs(processor: LlavaProcessor, pictures: Sequence[Image.Image], asked: Sequence[str]) -> dict:
    """Prepares one question about each picture for the model, with the checkpoint's own processor."""
    texts = [prompt(processor, question) for question in asked]
    return processor(images=list(pictures), text=texts, padding=True, return_tensors="pt")


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pictures: Sequence[Image.Image],
    asked: Sequence[str],
) -> list[str]:
    """Returns the model's greedy answer to one question about each picture."""
    inputs = model_inputs(processor, pictures, asked)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def exact_share(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    numbers: Sequence[int],
    advance: Callable[[int], object] = lambda count: None,
    batch: int = 20,
    words: str = QUESTION,
) -> float:
    """Returns the share of these held-out forms whose question is answered exactly."""
    right = 0
    for start in range(0, len(numbers), batch):
        forms = [held_out_form(n) for n in numbers[start : start + batch]]
        asked, expected = zip(*(one_question(form, words) for form in forms), strict=True)
        given = answers(model, processor, [png_picture(form) for form in forms], asked)
        right += sum(a == b for a, b in zip(given, expected, strict=True))
        advance(len(forms))
    return right / len(numbers)


def main(arguments: list[str] | None = None) -> int:
    """Prints the share of exact answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out form")
    parser.add_argument("--forms", type=int, default=500, help="how many held-out forms")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint).eval()
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    share = exact_share(model, processor, range(options.first, options.first + options.forms))
    print(f"exact on {share:.1%} of held-out forms {options.first} to {options.first + options.forms - 1}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
