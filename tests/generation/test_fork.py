"""A prompt that is prefilled once for many policies gives the same answers as one prefill for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.steps import policies_of
from vlkv import POLICIES, Policy
from vlkv.errors import PolicyError
from vlkv.generation.fork import Variant
from vlkv.generation.question import Question

PROMPT = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
VARIANTS = [
    Variant(policy, budget)
    for policy in POLICIES.values()
    for budget in ((1.0,) if policy.keeps_all else (1.0, 0.5, 0.2))
]


@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("shape", ["llama-gqa-tied", "mistral"])
def test_answers_equal_those_of_a_batch(engine_of, pictures, shape, operators):
    engine = engine_of(shape, operators)
    asked = Question(PROMPT, pictures, max_new_tokens=12, scores=True)
    variants = [one for one in VARIANTS if one.policy.name in policies_of(engine)]
    assert len(variants) > 20
    found = engine.read(asked).answer(variants)
    batch = [replace(asked, policy=variant.policy, budget=variant.budget) for variant in variants]
    for result, want in zip(found, engine.generate_batch(batch), strict=True):
        assert result.token_ids == want.token_ids
        assert result.kept_tokens == want.kept_tokens
        assert result.sparsity == want.sparsity
        assert (result.policy, result.budget, result.text) == (want.policy, want.budget, want.text)
        for kept, other in zip(result.positions or [], want.positions or [], strict=True):
            np.testing.assert_array_equal(kept, other)
        for scores, other in zip(result.scores, want.scores, strict=True):
            np.testing.assert_array_equal(scores, other)


def test_a_second_answer_is_the_first(engine_of, pictures):
    reading = engine_of("llama-gqa-tied").read(Question(PROMPT, pictures, max_new_tokens=12))
    first = reading.answer(VARIANTS)
    second = reading.answer(VARIANTS[::-1])[::-1]
    assert [result.token_ids for result in first] == [result.token_ids for result in second]
    assert reading.answer([]) == []


def test_forced_tokens_have_the_logits_of_each_policy_alone(engine_of, pictures, rng):
    engine = engine_of("llama-gqa-tied")
    asked = Question(PROMPT, pictures, max_new_tokens=12)
    tokens = rng.integers(5, 60, 9).tolist()
    together = np.stack([step.copy() for step in engine.read(asked).forced(VARIANTS, tokens)])
    assert together.shape[:2] == (len(tokens) + 1, len(VARIANTS))
    for number, variant in enumerate(VARIANTS):
        alone = engine.forced(replace(asked, policy=variant.policy, budget=variant.budget), tokens)
        want = np.stack([step.logits for step in alone])
        # a batch adds in another order: 60 products of the head, 3 layers, float32
        np.testing.assert_allclose(together[:, number], want, atol=2.0**-24 * 3 * 60**0.5 * 30, rtol=2e-5)


def test_what_an_engine_refuses_is_refused(engine_of, pictures):
    reading = engine_of("llama-gqa-tied", "functions").read(Question(PROMPT, pictures, max_new_tokens=4))
    with pytest.raises(PolicyError, match=r"threshold 0\.1"):
        reading.answer([Variant(Policy("x", rows="all", threshold=0.1), 0.5)])
    with pytest.raises(PolicyError, match="keeps everything"):
        reading.answer([Variant(POLICIES["full"], 0.5)])
