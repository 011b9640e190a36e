"""Dense forms of `key: VALUE` fields on 336 x 336 pictures, determined by a seed.

A form is a grid of 24 x 24 cells of 14 pixels. A cell holds one character and is one patch of the vision tower. Each
row has two halves of 12 columns; a half is empty or holds one field. Needs only NumPy and Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GRID = 24  # cells along a side
CELL = 14  # pixels along a cell's side
SIDE = GRID * CELL  # pixels along the picture's side
HALF = GRID // 2  # columns of a half row
GLYPH_LEFT, GLYPH_TOP = 4, 1  # the place of the 6 x 11 glyph in its cell, pixels

_KEYS = """
name date city code time year size unit room gate seat line plan team rank type
cost rate tax sum fee net due qty item ship port zip tel fax bank lot
bin bay dock load mass area crew flag lane mode note page ref step user zone
"""
KEYS = _KEYS.split()
VALUE_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE_LENGTHS = (2, 4)  # fewest and most characters
FIELD_COUNTS = (12, 24)  # fewest and most fields of a whole form

QUESTION = "what is the {key}?"

TRAINING_SEEDS = range(1_000_000_000)
HELD_OUT_SEEDS = range(1_000_000_000, 2_000_000_000)


class Forms(Protocol):
    """A kind of form that tasks ask about."""

    def held_out(self, number: int) -> Form:
        """Make the held-out form of that number (from 0), which training never uses."""

    def draw(self, form: Form) -> Image.Image:
        """Draw the form as an RGB picture."""


@dataclass(frozen=True, slots=True)
class Field:
    """One `key: VALUE`; `row` and `column` are the cell of the key's first character."""

    key: str
    value: str
    row: int
    column: int

    @property
    def text(self) -> str:
        """The text on the form, from the cell (`row`, `column`) to the right."""
        return f"{self.key}: {self.value}"

    @property
    def value_column(self) -> int:
        """The column of the value's first character."""
        return self.column + len(self.key) + 2


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of one form, from top left to bottom right, and its seed."""

    seed: int
    fields: tuple[Field, ...]


def random_form(
    seed: int, rows: Sequence[int] = tuple(range(GRID)), counts: tuple[int, int] = FIELD_COUNTS
) -> Form:
    """Make the form of that seed, with `counts[0]` to `counts[1]` fields, on the given rows of the grid only."""
    rng = np.random.default_rng(seed)
    most = min(counts[1], 2 * len(rows), len(KEYS))
    count = int(rng.integers(min(counts[0], most), most + 1))
    halves = np.sort(rng.choice(2 * len(rows), size=count, replace=False))
    keys = rng.choice(len(KEYS), size=count, replace=False)
    lengths = rng.integers(VALUE_LENGTHS[0], VALUE_LENGTHS[1] + 1, size=count)
    characters = rng.integers(len(VALUE_CHARACTERS), size=(count, VALUE_LENGTHS[1]))
    indents = rng.random(count)
    fields = []
    for half, key_id, length, ids, indent in zip(halves, keys, lengths, characters, indents, strict=True):
        key = KEYS[key_id]
        value = "".join(VALUE_CHARACTERS[i] for i in ids[:length])
        room = HALF - (len(key) + 2 + len(value))  # the last column stays blank
        column = int(half % 2) * HALF + int(indent * room)
        fields.append(Field(key, value, rows[half // 2], column))
    return Form(seed, tuple(fields))


def held_out_form(number: int) -> Form:
    """Make the held-out form of that number (from 0); training never uses seeds of this range."""
    return random_form(HELD_OUT_SEEDS[number])


def training_form(number: int, rows: Sequence[int], counts: tuple[int, int]) -> Form:
    """Make the training form of that number (from 0), on the given rows."""
    return random_form(TRAINING_SEEDS[number], rows, counts)


def characters(form: Form) -> np.ndarray:
    """Return the character of each cell, `[24, 24]` one-character strings; a blank cell holds a space."""
    grid = np.full((GRID, GRID), " ", dtype="<U1")
    for field in form.fields:
        grid[field.row, field.column : field.column + len(field.text)] = list(field.text)
    return grid


@cache
def font() -> ImageFont.ImageFont:
    """Return Pillow's built-in 6 x 11 bitmap font."""
    return ImageFont.load_default_imagefont()


def draw(form: Form) -> Image.Image:
    """Draw the form as an RGB picture of 336 x 336 pixels, black on white."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for (row, column), character in np.ndenumerate(characters(form)):
        if character != " ":
            position = (CELL * column + GLYPH_LEFT, CELL * row + GLYPH_TOP)
            pen.text(position, str(character), fill="black", font=font())
    return picture


def question(key: str, words: str = QUESTION) -> str:
    """Return the question for the value of `key`; `{key}` in the words is its place."""
    return words.replace("{key}", key)


def questions(form: Form, words: str = QUESTION) -> list[tuple[str, str]]:
    """List the (question, expected answer) of each field of the form."""
    return [(question(field.key, words), field.value) for field in form.fields]


def one_question(form: Form, words: str = QUESTION) -> tuple[str, str]:
    """Return one (question, expected answer) of the form, chosen by its seed."""
    choice = np.random.default_rng([form.seed, 1]).integers(len(form.fields))
    return questions(form, words)[choice]


def two_questions(form: Form, words: str = QUESTION) -> list[tuple[str, str]]:
    """Return two different pairs (question, expected answer) of the form, chosen by its seed."""
    choice = np.random.default_rng([form.seed, 2]).choice(len(form.fields), size=2, replace=False)
    asked = questions(form, words)
    return [asked[index] for index in choice]


class CharacterForms:
    """The kind of form that this module defines."""

    def held_out(self, number: int) -> Form:
        """See `held_out_form`."""
        return held_out_form(number)

    def draw(self, form: Form) -> Image.Image:
        """See `draw`."""
        return draw(form)


CHARACTERS = CharacterForms()
