"""Tasks repeat with the same seed, their answers follow from the form's fields, and every mistake is named."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from vlkv.errors import EvalError
from vlkv.eval import forms
from vlkv.eval.tasks import FORMS_PER_SEED, MAKERS, NEW_TOKENS, TASKS, make_samples


def pixels(sample):
    return [np.asarray(picture).tobytes() for picture in sample.pictures()]


@pytest.mark.parametrize("task", MAKERS)
def test_samples_are_deterministic_by_seed(task):
    first, second, other = (make_samples(task, 5, seed) for seed in (3, 3, 4))
    assert [sample.turns for sample in first] == [sample.turns for sample in second]
    assert pixels(first[1]) == pixels(second[1])
    assert pixels(first[1]) != pixels(other[1])
    assert len({pixels(sample)[0] for sample in first}) == 5


def test_seeds_share_no_form():
    last = make_samples("form-qa", 1, seed=0)[0]
    assert len(forms.HELD_OUT_SEEDS) >= FORMS_PER_SEED * 1000
    assert pixels(last) == [forms.draw(forms.held_out_form(0)).tobytes()]
    assert pixels(make_samples("form-qa", 1, seed=7)[0]) == [
        forms.draw(forms.held_out_form(7 * FORMS_PER_SEED)).tobytes()
    ]


def test_form_list_says_all_keys_in_order():
    sample = make_samples("form-list", 1, seed=2)[0]
    form = forms.held_out_form(2 * FORMS_PER_SEED)
    assert sample.turns[0].answer.split() == [field.key for field in form.fields]


def test_two_forms_asks_for_a_key_that_both_have():
    answers = {0: 0, 1: 0}
    for sample in make_samples("two-forms", 40, seed=1):
        first, second = sample.pictures()
        assert np.asarray(first).tobytes() != np.asarray(second).tobytes()
        turn = sample.turns[0]
        which = int(turn.question.removesuffix("?").rsplit(" ", 1)[1]) - 1
        key = turn.question.split()[3]
        assert turn.question == f"what is the {key} of form {which + 1}?"
        answers[which] += 1
        own = forms.held_out_form(FORMS_PER_SEED + sample.number)
        assert key in {field.key for field in own.fields}
        if which == 0:
            assert turn.answer in {field.value for field in own.fields if field.key == key}
    assert min(answers.values()) > 5


@pytest.mark.parametrize(
    "arguments", [("second-question", 6, 5, 1), ("second-question", 6, 5, 2), ("form-qa", 6, 5, 2)]
)
def test_second_questions_are_about_the_same_form(arguments):
    for sample in make_samples(*arguments):
        first, second = sample.turns
        assert first != second
        right = dict(forms.questions(forms.held_out_form(5 * FORMS_PER_SEED + sample.number)))
        assert right[first.question] == first.answer
        assert right[second.question] == second.answer


def test_other_words():
    assert make_samples("form-qa", 1, words="{key}?")[0].turns[0].question in {
        f"{key}?" for key in forms.KEYS
    }
    sample = make_samples("two-forms", 1, words="{form}: {key}")[0]
    assert sample.turns[0].question.split(": ")[1] in forms.KEYS


def test_every_task_has_a_length():
    assert set(NEW_TOKENS) == set(TASKS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": "form-q", "count": 3}, "unknown task 'form-q'; known: form-qa, form-list"),
        ({"task": "form-qa", "count": 0}, "0 samples are outside 1 to 500,000"),
        ({"task": "form-qa", "count": 3, "seed": 1000}, "seed 1000 is outside 0 to 999"),
        ({"task": "form-qa", "count": 3, "turns": 3}, "3 turns are outside 1 to 2"),
        ({"task": "form-list", "count": 3, "turns": 2}, "form-list has one question"),
        ({"task": "folder", "count": 3}, "task folder needs --data"),
        ({"task": "form-qa", "count": 3, "words": "what?"}, "question 'what?' has no {key}"),
        ({"task": "two-forms", "count": 3, "words": "{key}?"}, "has no {form}"),
    ],
)
def test_refusals(arguments, says):
    with pytest.raises(EvalError, match=re.escape(says)):
        make_samples(**arguments)


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def write(*lines):
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (tmp_path / "lines.jsonl").write_text(text)
        return tmp_path

    return write


GOOD = {"image": "a.png", "question": "what?", "answer": "this"}


def test_folder(data):
    two = {"images": ["a.png", "a.png"], "question": ["what?", "and?"], "answer": ["this", ""]}
    samples = make_samples("folder", None, data=data(GOOD, two))
    assert [len(sample.pictures()) for sample in samples] == [1, 2]
    assert [turn.answer for turn in samples[1].turns] == ["this"]
    assert len(make_samples("folder", None, data=data(two), turns=2)[0].turns) == 2
    assert len(make_samples("folder", 1, data=data(GOOD, GOOD) / "lines.jsonl")) == 1


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((GOOD, "", GOOD), "line 2 is empty"),
        ((GOOD, "  ", GOOD), "line 2 is empty"),
        ((GOOD, GOOD, ""), "line 3 is empty"),
        ((GOOD, GOOD, '{"image": '), "line 3: "),
        (("[1]",), "line 1 is not an object"),
        ((GOOD, {**GOOD, "q": 1}), "line 2: unknown field 'q'; known: image"),
        (({"image": "a.png", "question": "what?"},), "line 1: answer is neither a text"),
        (({**GOOD, "answer": 7},), "line 1: answer is neither a text"),
        (({**GOOD, "question": " "},), "line 1: question is empty"),
        (({**GOOD, "question": ["a", "b"]},), "line 1 has 2 questions and 1 answers"),
        (({**GOOD, "image": "b.png"},), "b.png is not a file"),
        (({**GOOD, "image": []},), "line 1: image is neither a text"),
        ((), "has no lines"),
    ],
)
def test_every_malformed_line_gives_its_number(data, lines, says):
    with pytest.raises(EvalError) as failed:
        make_samples("folder", None, data=data(*lines))
    assert says in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_folder_without_lines_and_a_line_of_too_few_turns(data, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, says in ((tmp_path / "empty", "holds 0 .jsonl files"), (tmp_path / "none", "does not exist")):
        with pytest.raises(EvalError, match=says):
            make_samples("folder", None, data=path)
    with pytest.raises(EvalError, match="line 1 has 1 question, 2 are needed"):
        make_samples("folder", None, data=data(GOOD), turns=2)
    with pytest.raises(EvalError, match="takes no --data"):
        make_samples("form-qa", 3, data=tmp_path)
