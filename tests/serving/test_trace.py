"""Recorded loads: documents and pictures by number, and lines that are refused."""

from __future__ import annotations

import pytest

from vlkv.errors import VlkvError
from vlkv.serving.trace import Line, read_trace


def test_a_document_belongs_to_its_number_and_stands_before_the_question():
    first, same, other = (Line(at=0, words=2, document=40, image=number) for number in (3, 3, 4))
    assert first.prompt() == same.prompt() != other.prompt()
    words = first.prompt().split()
    assert words[40:] == ["what", "is"]
    assert all(word[0] == "w" and 0 <= int(word[1:]) < 10_000 for word in words[:40])
    assert first.picture() is None
    assert Line(at=0, words=1).prompt() == "what"


@pytest.mark.parametrize(
    "line, told",
    [
        ('{"at": 0, "document": -1}', "line 1: Expected `int` >= 0"),
        ('{"at": 0, "document": 200000}', "line 1: Expected `int` <= 100000"),
        ('{"at": 0, "image": -1, "document": 3}', "line 1: Expected `int` >= 0"),
        ('{"at": 0, "text": "a"}', "unknown field `text`"),
        ("", "holds no requests"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, told):
    path = tmp_path / "trace.jsonl"
    path.write_text(line)
    with pytest.raises(VlkvError) as found:
        read_trace(path)
    assert told in str(found.value)
