"""Forms of words repeat by seed, hold one word per cell, and every bad file is named."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pytest

from vlkv.errors import EvalError
from vlkv.eval.forms import CHARACTERS, FIELD_COUNTS, GRID, HALF
from vlkv.eval.tasks import engine_forms, make_samples
from vlkv.eval.word_forms import read_word_forms

KEYS = ["".join(letters) for letters in product("abcd", "ef", "gh")]
GOOD = {"cell": 32, "keys": KEYS, "words": ["red", "Paris", "stone"], "digits": [2, 4]}


@pytest.fixture
def forms(tmp_path):
    (tmp_path / "forms.json").write_text(json.dumps(GOOD))
    return read_word_forms(tmp_path / "forms.json")


def test_forms_are_of_the_words_given_and_of_the_seed(forms):
    lengths = set()
    for number in range(60):
        form = forms.held_out(number)
        assert form == forms.held_out(number)
        assert FIELD_COUNTS[0] <= len(form.fields) <= len(KEYS)
        assert len({field.key for field in form.fields}) == len(form.fields)
        for field in form.fields:
            assert field.key in KEYS
            number_given = field.value.isdigit() and 2 <= len(field.value) <= 4
            assert number_given or field.value in GOOD["words"]
            lengths.add(len(field.value) if number_given else field.value)
            end = field.column + 2 + len(forms.cells(field.value))
            assert field.column // HALF == (end - 1) // HALF and (end + 1) % HALF != 1
    assert lengths == {2, 3, 4, *GOOD["words"]}
    assert forms.held_out(1).fields != forms.held_out(2).fields


def test_each_cell_holds_what_the_grid_says(forms):
    form = forms.held_out(7)
    grid = forms.grid(form)
    assert sum(text != "" for text in grid.ravel()) == sum(
        2 + len(forms.cells(field.value)) for field in form.fields
    )
    field = form.fields[0]
    row = grid[field.row, field.column :]
    assert [*row[:2]] == [field.key, ":"]
    assert "".join(row[2 : 2 + len(forms.cells(field.value))]) == field.value
    pixels = np.asarray(forms.draw(form).convert("L")).reshape(GRID, 32, GRID, 32).transpose(0, 2, 1, 3)
    assert ((pixels.min(axis=(2, 3)) == 0) == (grid != "")).all()
    same = [pixels[place] for place in zip(*np.nonzero(grid == ":"), strict=True)]
    assert all((patch == same[0]).all() for patch in same)
    assert (pixels == 255).any(axis=(2, 3)).all()


def test_tasks_take_the_engines_forms(forms, tmp_path):
    assert engine_forms(tmp_path / "none") is CHARACTERS
    given = engine_forms(tmp_path)
    assert given == forms
    for task in ("form-qa", "form-list", "two-forms", "second-question"):
        sample = make_samples(task, 1, seed=2, forms=given)[0]
        assert sample.pictures()[0].size == (768, 768)
        for turn in sample.turns:
            assert all(
                word in KEYS or word in GOOD["words"] or word.isdigit() for word in turn.answer.split()
            )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cell": 13}, "cell 13 is outside 14 to 64 pixels"),
        ({"cell": "a"}, "Expected `int`"),
        ({"digits": [3, 2]}, "digits 3, 2 are not a range within 1 to 8"),
        ({"digits": [2, 9]}, "digits 2, 9 are not a range within 1 to 8"),
        ({"keys": KEYS[:11]}, "has 11 keys and 3 words; a form needs at least 12 keys"),
        ({"words": []}, "has 16 keys and 0 words"),
        ({"words": ["red", "red"]}, "'red' occurs twice"),
        ({"words": [KEYS[0]]}, f"'{KEYS[0]}' occurs twice"),
        ({"words": ["orange"]}, "'orange' is not a word of 1 to 5 letters"),
        ({"words": ["4512"]}, "'4512' is not a word"),
        ({"words": [""]}, "is not a word of 1"),
        ({"font": 1}, "unknown field"),
    ],
)
def test_bad_files_are_named(change, says, tmp_path):
    path = tmp_path / "forms.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(EvalError, match=re.escape(says)) as failed:
        read_word_forms(path)
    assert "forms.json" in str(failed.value) and "\n" not in str(failed.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(EvalError, match=r"none\.json"):
        read_word_forms(tmp_path / "none.json")
    (tmp_path / "forms.json").write_bytes(b"\xff{")
    with pytest.raises(EvalError, match=r"forms\.json"):
        engine_forms(tmp_path)
