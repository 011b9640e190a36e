"""Tasks: pictures, questions and right answers, made on the fly, the same for the same seed.

They are about forms that no training draws, of characters (`vlkv.eval.forms`) or, where the engine's checkpoint says
which, of words (`vlkv.eval.word_forms`); or read from a folder (`vlkv.eval.folder`).
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
    """The forms that an engine's checkpoint reads: those of its `forms.json`, else of characters.

    Raises:
        EvalError: that file can't be used.
    """
    path = directory / FORMS_FILE
    return read_word_forms(path) if path.is_file() else CHARACTERS


@dataclass(frozen=True)
class Turn:
    """A question with its right answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One thing to ask about.

    Fields:
        number: from 0.
        pictures: opens its pictures.
        turns: one question, or several about the same pictures.
    """

    number: int
    pictures: Callable[[], Sequence[Image | Path]]
    turns: tuple[Turn, ...]


def form_number(seed: int, sample: int) -> int:
    """The number of a held-out form; seeds share none."""
    return seed * FORMS_PER_SEED + sample


def form_qa(seed: int, sample: int, words: str = QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """Read one field of a dense form: the answer lies in a few patches."""
    form = forms.held_out(form_number(seed, sample))
    return Sample(sample, lambda: [forms.draw(form)], (Turn(*one_question(form, words)),))


def form_list(seed: int, sample: int, words: str = LIST_QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """Say all keys of a form in order, with blanks between: the answer needs patches all over the picture."""
    form = forms.held_out(form_number(seed, sample))
    keys = " ".join(field.key for field in form.fields)
    return Sample(sample, lambda: [forms.draw(form)], (Turn(words, keys),))


def two_forms(seed: int, sample: int, words: str = TWO_FORMS_QUESTION, forms: Forms = CHARACTERS) -> Sample:
    """Two forms that share the key asked for; the question names one of them."""
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
    """Two questions about one form, one after the other."""
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
    """Samples of a task.

    Args:
        task: one of `TASKS`.
        count: how many; None for 500, of a folder for all.
        seed: of the forms.
        turns: questions about one picture. `form-qa` with 2 is `second-question`, which always has 2.
        words: the question, where the model was trained on another; `{key}` is the place of the key, in `two-forms`
            `{form}` of the form's number.
        data: a folder or JSONL file, for the task `folder` and for no other.
        forms: which forms the form tasks are about.

    Raises:
        EvalError: an unknown task, a number out of its range, or data that can't be used.
    """
    if task not in TASKS:
        raise EvalError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    if task == "text":
        raise EvalError("task text asks about no pictures; vlkv.eval.texts makes its samples")
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
            f"task {task} has one question a sample; two have form-qa, second-question and folder"
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
