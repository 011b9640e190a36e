"""Tasks: pictures, questions and expected answers, generated from a seed.

They use forms that training never uses, of characters (`vlkv.eval.forms`) or, if the engine's checkpoint defines them,
of words (`vlkv.eval.word_forms`); or they are read from a folder (`vlkv.eval.folder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL.Image import Image

from vlkv.errors import EvalError
from vlkv.eval.folder import read_folder
from vlkv.eval.forms import CHARACTERS, HELD_OUT_SEEDS, QUESTION, Forms, one_question, question, two_questions
from vlkv.eval.word_forms import read_word_forms

LIST_QUESTION = "what are the keys?"
TWO_FORMS_QUESTION = "what is the {key} of form {form}?"
FORMS_FILE = "forms.json"
FORMS_PER_SEED = 1_000_000
SEEDS = len(HELD_OUT_SEEDS) // FORMS_PER_SEED
MAX_SAMPLES = FORMS_PER_SEED // 2


def engine_forms(directory: Path) -> Forms:
    """The forms that an engine's checkpoint was trained on: those of its `forms.json`, else of characters.

    Raises:
        EvalError: that file is invalid.
    """
    path = directory / FORMS_FILE
    return read_word_forms(path) if path.is_file() else CHARACTERS


@dataclass(frozen=True)
class Turn:
    """A question with its expected answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One sample of a task.

    Fields:
        number: its number, from 0.
        pictures: a function that opens its pictures.
        turns: one question, or several about the same pictures.
    """

    number: int
    pictures: Callable[[], Sequence[Image | Path]]
    turns: tuple[Turn, ...]


def form_number(seed: int, sample: int) -> int:
    """The number of a held-out form; different seeds have different forms."""
    return seed * FORMS_PER_SEED + sample


def form_qa(seed: int, sample: int, words: str = QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """Read one field of a dense form: the answer is in a few patches."""
    form = forms.held_out(form_number(seed, sample))
    return Sample(sample, lambda: [forms.draw(form)], (Turn(*one_question(form, words)),))


def form_list(seed: int, sample: int, words: str = LIST_QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """List all keys of a form in order, separated by blanks: the answer needs patches from the whole picture."""
    form = forms.held_out(form_number(seed, sample))
    keys = " ".join(field.key for field in form.fields)
    return Sample(sample, lambda: [forms.draw(form)], (Turn(words, keys),))


def two_forms(seed: int, sample: int, words: str = TWO_FORMS_QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """Two forms that share a key; the question names one of the forms."""
    first = forms.held_out(form_number(seed, sample))
    for number in range(form_number(seed, MAX_SAMPLES + sample), form_number(seed + 1, 0)):
        second = forms.held_out(number)
        shared = sorted({field.key for field in first.fields} & {field.key for field in second.fields})
        if shared:
            break
    rng = np.random.default_rng([first.seed, 3])
    key, which = shared[rng.integers(len(shared))], int(rng.integers(2))
    value = next(field.value for field in (first, second)[which].fields if field.key == key)
    asked = question(key, words).replace("{form}", str(which + 1))
    return Sample(sample, lambda: [forms.draw(first), forms.draw(second)], (Turn(asked, value),))


def second_question(seed: int, sample: int, words: str = QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """Two successive questions about one form."""
    form = forms.held_out(form_number(seed, sample))
    turns = tuple(Turn(*pair) for pair in two_questions(form, words))
    return Sample(sample, lambda: [forms.draw(form)], turns)


MAKERS: dict[str, Callable[..., Sample]] = {
    "form-qa": form_qa,
    "form-list": form_list,
    "two-forms": two_forms,
    "second-question": second_question,
}
TASKS = (*MAKERS, "folder", "text")
NEW_TOKENS = {"form-qa": 8, "form-list": 128, "two-forms": 8, "second-question": 8, "folder": 64, "text": 64}


def make_samples(
    task: str,
    count: int | None,
    seed: int = 0,
    turns: int = 1,
    data: Path | None = None,
    words: str | None = None,
    forms: Forms = CHARACTERS,
) -> list[Sample]:
    """Makes the samples of a task.

    Args:
        task: one of `TASKS`.
        count: the number of samples; None for 500, or for all of a folder.
        seed: the seed of the forms.
        turns: questions about one picture. `form-qa` with 2 is `second-question`, which always has 2.
        words: the question, for models trained on another one; `{key}` is the place of the key, and in `two-forms`
            `{form}` that of the form's number.
        data: a folder or JSONL file, only for the task `folder`.
        forms: the kind of forms.

    Raises:
        EvalError: the task is unknown, a number is out of range, or the data is invalid.
    """
    if task not in TASKS:
        raise EvalError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    if task == "text":
        raise EvalError("task text has no pictures; vlkv.eval.texts makes its samples")
    if count is not None and not 1 <= count <= MAX_SAMPLES:
        raise EvalError(f"{count} samples are outside 1 to {MAX_SAMPLES:,}")
    if not 0 <= seed < SEEDS:
        raise EvalError(f"seed {seed} is outside 0 to {SEEDS - 1}")
    if turns not in (1, 2):
        raise EvalError(f"{turns} turns are outside 1 to 2")
    if (task == "folder") != (data is not None):
        wanted = (
            "needs --data with a folder of pictures and lines"
            if data is None
            else "takes no --data; use task folder"
        )
        raise EvalError(f"task {task} {wanted}")
    if words is not None:
        _check_words(words, task)
    if data is not None:
        lines = read_folder(data, turns)[:count]
        return [
            Sample(number, lambda line=line: line.images, tuple(Turn(*pair) for pair in line.turns))  # type: ignore[misc]
            for number, line in enumerate(lines)
        ]
    if turns == 2 and task == "form-qa":
        task = "second-question"
    if turns == 2 and task != "second-question":
        raise EvalError(
            f"task {task} has one question per sample; form-qa, second-question and folder have two"
        )
    make = partial(MAKERS[task], forms=forms)
    if words is not None:
        make = partial(make, words=words)
    return [make(seed, number) for number in range(count or 500)]


def _check_words(words: str, task: str) -> None:
    places = {"folder": (), "form-list": (), "two-forms": ("{key}", "{form}")}.get(task, ("{key}",))
    if task == "folder":
        raise EvalError("task folder has questions of its own; leave --question out")
    for place in places:
        if place not in words:
            raise EvalError(f"question {words!r} has no {place}; task {task} asks like {question('{key}')!r}")
    if not words.strip():
        raise EvalError("question is empty")
