"""A batch computes no row whose answer has ended, and the others' answers are what they are alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from models.steps import policies_of
from vlkv import Question
from vlkv.backend.cache import Cache


@pytest.mark.parametrize("operators", ["native", "functions"])
def test_ended_rows_are_not_computed(engine_of, pictures, rng, monkeypatch, operators):
    engine = engine_of("llama-old", operators)
    policies = ["full", *policies_of(engine)]
    questions = [
        Question(
            "what is the total",
            pictures[: number % 2],
            policy=policies[number % len(policies)],
            max_new_tokens=int(rng.integers(1, 40)),
            temperature=float(number % 3 == 0),
            seed=number,
        )
        for number in range(12)
    ]
    alone = [engine.generate_batch([question])[0] for question in questions]
    steps, rows = engine.model.backend.steps, []

    def counted(cache):
        made = steps(cache)
        step = made.step
        made.step = lambda *given: (rows.append(cache.batch), step(*given))[1]
        return made

    monkeypatch.setattr(engine.model.backend, "steps", counted)
    together = engine.generate_batch(questions)
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert [result.text for result in together] == [result.text for result in alone]
    assert [result.finish_reason for result in together] == [result.finish_reason for result in alone]
    assert sum(rows) == sum(len(result.token_ids) - 1 for result in alone)
    assert rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("trial", range(10))
def test_a_cache_is_compacted(rng, trial):
    text = SimpleNamespace(layers=2, kv_heads=2, head_dim=4)
    count = int(rng.integers(1, 8))
    shape = (count, 2, 9, 4)
    keys, values = ([rng.standard_normal(shape, np.float32) for _ in range(text.layers)] for _ in range(2))
    cache = Cache(keys, values, rng.integers(0, 10, (2, count)))
    before, length = [array.copy() for array in (*keys, *values)], cache.length.copy()
    stay = sorted(rng.choice(count, int(rng.integers(0, count + 1)), replace=False).tolist())
    found, places = cache.compacted(stay)
    assert sorted(places) == stay and found.batch == len(stay)
    assert [place for row, place in enumerate(places) if place == row] == [n for n in stay if n < len(stay)]
    for row, place in enumerate(places):
        for layer in range(2):
            tokens = length[layer, place]
            assert found.length[layer, row] == tokens
            for array, was in ((found.keys[layer], before[layer]), (found.values[layer], before[2 + layer])):
                np.testing.assert_array_equal(array[row, :, :tokens], was[place, :, :tokens])
    assert all(np.shares_memory(array, whole) for array, whole in zip(found.keys, keys, strict=True) if stay)
