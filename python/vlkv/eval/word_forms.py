"""Forms whose cells hold whole words, from a closed list that a checkpoint provides as a JSON file.

    {"cell": 32, "keys": ["total", "city"], "words": ["red", "Paris"], "digits": [2, 4]}

A field is a row of cells: its key, a colon, and its value, which is one word, or a number with one digit per cell. The
grid, its halves and the seeds are those of `vlkv.eval.forms`; a cell is one patch of the vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from vlkv.errors import EvalError
from vlkv.eval.forms import FIELD_COUNTS, GRID, HALF, HELD_OUT_SEEDS, Field, Form, font
from vlkv.storage.files import reason, show

GLYPHS = (6, 11)  # pixels of a character
LEFT = 1  # pixels before a word in its cell
SHARE_OF_NUMBERS = 0.5


class WordForms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of form.

    Fields:
        cell: pixels along a cell's side.
        keys, words: the possible keys and values; no word is in both.
        digits: the fewest and most digits of a number.
    """

    cell: int
    keys: tuple[str, ...]
    words: tuple[str, ...]
    digits: tuple[int, int]

    def random_form(self, seed: int, counts: tuple[int, int] = FIELD_COUNTS) -> Form:
        """Make the form of that seed, with `counts[0]` to `counts[1]` fields."""
        rng = np.random.default_rng(seed)
        most = min(counts[1], len(self.keys))
        count = int(rng.integers(min(counts[0], most), most + 1))
        halves = np.sort(rng.choice(2 * GRID, size=count, replace=False))
        keys = rng.choice(len(self.keys), size=count, replace=False)
        fields = []
        for half, key_id in zip(halves, keys, strict=True):
            value = self._value(rng)
            room = HALF - (2 + len(self.cells(value)))  # the last column stays blank
            column = int(half % 2) * HALF + int(rng.integers(room))
            fields.append(Field(self.keys[key_id], value, int(half // 2), column))
        return Form(seed, tuple(fields))

    def _value(self, rng: np.random.Generator) -> str:
        if rng.random() < SHARE_OF_NUMBERS:
            length = rng.integers(self.digits[0], self.digits[1] + 1)
            return "".join(map(str, rng.integers(10, size=length)))
        return self.words[rng.integers(len(self.words))]

    @staticmethod
    def cells(value: str) -> tuple[str, ...]:
        """The texts of a value's cells."""
        return tuple(value) if value.isdigit() else (value,)

    def held_out(self, number: int) -> Form:
        """Make the held-out form of that number (from 0); training never uses seeds of this range."""
        return self.random_form(HELD_OUT_SEEDS[number])

    def grid(self, form: Form) -> np.ndarray:
        """Return the text of each cell, `[24, 24]`; empty for a blank cell."""
        grid = np.full((GRID, GRID), "", dtype=object)
        for field in form.fields:
            texts = (field.key, ":", *self.cells(field.value))
            grid[field.row, field.column : field.column + len(texts)] = texts
        return grid

    def draw(self, form: Form) -> Image.Image:
        """Draw the form as an RGB picture with 24 cells per side, black on white."""
        picture = Image.new("RGB", (GRID * self.cell, GRID * self.cell), "white")
        pen = ImageDraw.Draw(picture)
        top = (self.cell - GLYPHS[1]) // 2
        for (row, column), text in np.ndenumerate(self.grid(form)):
            if text:
                position = (self.cell * column + LEFT, self.cell * row + top)
                pen.text(position, text, fill="black", font=font())
        return picture


@dataclass(frozen=True)
class _Limits:
    cell: range = range(14, 65)
    digits: range = range(1, HALF - 3)
    most: int = 10_000


_LIMITS = _Limits()


def read_word_forms(path: Path) -> WordForms:
    """Read a kind of form from its JSON file.

    Raises:
        EvalError: the file does not exist or is invalid.
    """
    where = show(path)
    try:
        forms = msgspec.json.decode(path.read_bytes(), type=WordForms)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise EvalError(f"{where}: {reason(error)}") from error
    if forms.cell not in _LIMITS.cell:
        raise EvalError(
            f"{where}: cell {forms.cell} is outside {_LIMITS.cell[0]} to {_LIMITS.cell[-1]} pixels"
        )
    low, high = forms.digits
    if low not in _LIMITS.digits or high not in _LIMITS.digits or low > high:
        raise EvalError(f"{where}: digits {low}, {high} are not a range within 1 to {_LIMITS.digits[-1]}")
    if len(forms.keys) < FIELD_COUNTS[0] or not forms.words:
        raise EvalError(
            f"{where} has {len(forms.keys)} keys and {len(forms.words)} words; "
            f"a form needs at least {FIELD_COUNTS[0]} keys and a word"
        )
    given = [*forms.keys, *forms.words]
    if len(given) > _LIMITS.most:
        raise EvalError(f"{where} has {len(given)} keys and words; {_LIMITS.most:,} are allowed")
    seen: set[str] = set()
    widest = (forms.cell - LEFT) // GLYPHS[0]
    for word in given:
        if word in seen:
            raise EvalError(f"{where}: {show(word)!r} occurs twice")
        if not (word.isascii() and word.isalpha() and len(word) <= widest):
            raise EvalError(f"{where}: {show(word)!r} is not a word of 1 to {widest} letters a-z, A-Z")
        seen.add(word)
    return forms
