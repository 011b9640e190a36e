"""The settings of a benchmark: parsing texts, and making prompts of an exact length."""

from __future__ import annotations

import numpy as np
import pytest

from vlkv.bench.prompts import make_prompts
from vlkv.bench.settings import (
    QUESTION,
    Budget,
    Settings,
    parse_batches,
    parse_budgets,
    parse_lengths,
    parse_names,
)
from vlkv.errors import BenchError, VlkvError


def test_texts_are_read():
    assert parse_lengths("640, 1k,1.5K,32k") == (640, 1000, 1500, 32000)
    assert parse_batches("1,4") == (1, 4)
    assert parse_budgets("1,0.1,160t") == (Budget(1.0), Budget(0.1), Budget(tokens=160))
    assert parse_names("kvpress,hf", ("hf", "kvpress"), "peers") == ("kvpress", "hf")


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_lengths, "", "empty part"),
        (parse_lengths, "1k,,2k", "empty part"),
        (parse_lengths, "0", "'0' is not a number of tokens"),
        (parse_lengths, "-5", "'-5' is not a number of tokens"),
        (parse_lengths, "1.0005k", "is not a number of tokens"),
        (parse_lengths, "99999k", "is not a number of tokens"),
        (parse_lengths, "1k,1000", "twice"),
        (parse_batches, "0", "from 1 to 1024"),
        (parse_batches, "1025", "from 1 to 1024"),
        (parse_batches, "two", "from 1 to 1024"),
        (parse_budgets, "0", "outside (0, 1]"),
        (parse_budgets, "2", "outside (0, 1]"),
        (parse_budgets, "nan", "outside (0, 1]"),
        (parse_budgets, "0t", "not a budget"),
        (parse_budgets, "much", "not a budget"),
        (lambda text: parse_names(text, ("hf",), "peers"), "vllm", "unknown; known: hf"),
    ],
)
def test_wrong_texts_are_one_line(parse, text, said):
    with pytest.raises(VlkvError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_budgets():
    assert [budget.label for budget in parse_budgets("1,0.1,160t")] == ["full cache", "10% kept", "160 kept"]
    assert Budget(tokens=160).of(640) == 0.25
    assert Budget(tokens=160).of(100) == 1.0
    assert Budget(0.1).of(100) == 0.1


def test_an_engine_that_cannot_is_told_before_anything_runs(engine_of):
    manifest = engine_of("llama").manifest
    least = manifest.image.tile_features + QUESTION + 1
    most = manifest.text.max_positions - 8
    Settings((least, most), (1,), (Budget(1.0),), (3, 8)).check(manifest)
    for length, said in ((least - 1, f"at least {least}"), (most + 1, f"up to {most} do")):
        with pytest.raises(BenchError, match=said):
            Settings((length,), (1,), (Budget(1.0),), (3, 8)).check(manifest)
    with pytest.raises(BenchError, match="keeps everything"):
        Settings((least,), (1,), (Budget(0.1),), (8,), policy="full").check(manifest)


def test_prompts_have_their_length_and_one_picture(engine_of):
    manifest = engine_of("llama").manifest
    image, length = manifest.image, 90
    prompts = make_prompts(manifest, length, 3, 1)
    for asked in prompts:
        ids = asked.prompt.token_ids
        assert len(ids) == length
        places = np.flatnonzero(ids == image.token_id)
        assert places.tolist() == asked.prompt.image_positions.tolist()
        assert len(places) == image.tile_features
        assert length - 1 - places[-1] == QUESTION == length - 1 - asked.prompt.last_image
        assert not set(ids[1:].tolist()) & {*manifest.tokens.eos, manifest.tokens.bos, manifest.tokens.pad}
    again = make_prompts(manifest, length, 3, 1)
    assert all((a.prompt.token_ids == b.prompt.token_ids).all() for a, b in zip(prompts, again, strict=True))
    assert all(
        a.pictures[0].tobytes() == b.pictures[0].tobytes() for a, b in zip(prompts, again, strict=True)
    )
    assert (prompts[0].prompt.token_ids != prompts[1].prompt.token_ids).any()
