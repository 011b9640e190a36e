"""JSON schemas that take long to compile are refused before they are."""

from __future__ import annotations

import json

import pytest

from vlkv.errors import SamplingError
from vlkv.inputs.grammar import Grammars

TEXT = {"type": "string"}


@pytest.mark.parametrize(
    "schema, told",
    [
        (
            {"properties": {f"p{index}": TEXT for index in range(1001)}},
            "1001 members in one place, the limit is 1000",
        ),
        ({"items": {"anyOf": [TEXT] * 1001}}, "1001 members in one place, the limit is 1000"),
        (
            {"required": [f"x{index}" for index in range(10_001)]},
            "10001 members in one place, the limit is 10000",
        ),
        ({"description": "x" * 300_000}, "the limit is 262144"),
    ],
)
def test_schemas_with_too_many_members(schema, told, tmp_path):
    with pytest.raises(SamplingError, match=told):
        Grammars(tmp_path, 16, [2]).json(json.dumps(schema))


def test_as_many_members_as_the_limit(tmp_path):
    """What fails next is the tokenizer, which is missing."""
    schema = {"properties": {f"p{index}": TEXT for index in range(1000)}, "enum": list(range(10_000))}
    with pytest.raises(SamplingError, match="llguidance does not read its tokenizer"):
        Grammars(tmp_path, 16, [2]).json(json.dumps(schema))
