"""Text that stays before image tokens: against the oracle on random scores, and on mixed prompts of whole engines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from oracles import policies as oracle
from policies.facts import small_text
from vlkv import POLICIES, Policy
from vlkv.backend.cache import Cache
from vlkv.errors import PolicyError
from vlkv.generation.question import Question
from vlkv.policies.compress import always_kept, compress
from vlkv.policies.observe import Observer
from vlkv.policies.protect import claimed, text_first

HEADS, DIM = 2, 24
FACTS = small_text(3, 4, HEADS, DIM)
LONG = "what is the total name date city of form " + " ".join(f"w{n}" for n in range(40))


@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("kind", ["random", "ties", "nan"])
def test_kept_tokens_equal_the_oracle(engine_of, rng, operators, per_head, kind):
    if kind == "nan" and operators == "functions":
        pytest.skip("the graph's selection takes no NaN")
    backend = engine_of("mistral", operators).model.backend
    for length in (1, 2, 19, 60):
        for share, least in ((0.25, 0), (0.5, 0), (1.0, 0), (0.1, 7), (0.0, 200)):
            policy = Policy(
                "p", rows="all", sinks=1, recent=0.2, per_head=per_head, text=share, text_tokens=least
            )
            text = rng.random(length) < rng.choice([0.0, 0.2, 0.6, 1.0])
            scores = rng.random((FACTS.layers, 1, HEADS, length)).astype(np.float32)
            if kind == "ties":
                scores = np.floor(scores * 3).astype(np.float32)
            if kind == "nan":
                scores[rng.random(scores.shape) < 0.2] = np.nan
            shape = (1, HEADS, length, DIM)
            arrays = [[np.zeros(shape, np.float32) for _ in range(FACTS.layers)] for _ in range(2)]
            observer = Observer(FACTS, policy, length, range(length), 1)
            observer.scores, observer.image = list(scores), ~text
            counts = np.minimum([1, 8, 15], length)
            cache = Cache(*arrays, np.full((FACTS.layers, 1), length))
            _, kept = compress(policy, cache, observer, counts, counts, backend)
            for layer, count in enumerate(counts.tolist()):
                ends = always_kept(policy, count, 0)
                assert claimed(policy, count) == min(count, max(round(share * count), least))
                for head in range(HEADS):
                    with np.errstate(invalid="ignore"):
                        rating = (
                            scores[layer, 0].astype(float)[head]
                            if per_head
                            else scores[layer, 0].sum(axis=0, dtype=float)
                        )
                    want = oracle.text_first(
                        rating, length, count, *ends, set(np.flatnonzero(text)), claimed(policy, count)
                    )
                    assert kept[layer][head].tolist() == want


def test_nothing_is_copied_where_text_claims_nothing():
    scores = np.ones((1, 2, 5), np.float32)
    for text, claim in ((np.zeros(5, bool), 5), (np.ones(5, bool), 5), (np.array([1, 0, 1, 0, 1], bool), 0)):
        assert text_first(scores, text, (0, 5), 5, claim, True) is scores


@pytest.mark.parametrize("count", [1, 2])
def test_mixed_prompts(engine_of, pictures, count):
    """A long text and one picture or two: text goes only where it exceeds its part, or the budget."""
    engine = engine_of("llama-gqa-tied")
    asked = Question(LONG, pictures[:count], max_new_tokens=3)
    plain = replace(POLICIES["vl-cache"], allocation="equal", per_head=False, text=0.0, text_tokens=0)
    image = set(engine.prompt(asked).image_positions.tolist())
    for budget in (0.3, 0.7):
        for share in (0.0, 0.5, 1.0):
            policy = replace(plain, text=share)
            result = engine.generate_batch([replace(asked, policy=policy, budget=budget)])[0]
            text = set(range(result.prompt_tokens)) - image
            for kept, number in zip(result.positions, result.kept_tokens, strict=True):
                held = len(text & set(kept[0].tolist()))
                assert held >= min(len(text), claimed(policy, number))
                if share == 1.0:
                    assert held == min(len(text), number)
    # the same in a conversation and for several settings at once
    policy = replace(plain, text=1.0)
    one = engine.generate_batch([replace(asked, policy=policy, budget=0.4)])[0]
    chat = engine.chat(policy, 0.4).ask(LONG, pictures[:count], max_new_tokens=3)
    for mine, other in zip(one.positions, chat.positions, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_pruned_prompt(engine_of, pictures):
    engine = engine_of("llama-gqa-tied")
    policy = replace(POLICIES["vl-cache"], text=1.0)
    asked = Question(LONG, pictures, policy=policy, budget=0.5, max_new_tokens=2, prune="diverse:0.5")
    result, image = engine.generate_batch([asked])[0], engine.prompt(asked).image_positions
    for kept, number in zip(result.positions, result.kept_tokens, strict=True):
        for head in kept:
            text = np.isin(head, image, invert=True).sum()
            assert text == min(number, result.prompt_tokens - len(image))


def test_a_text_alone_is_kept_as_without_the_field(engine_of):
    engine = engine_of("llama-gqa-tied")
    plain = replace(POLICIES["shared-question"], text=0.0, text_tokens=0)
    found = [
        engine.generate(LONG, policy=policy, budget=0.3, max_new_tokens=3)
        for policy in (plain, replace(plain, text=0.5))
    ]
    for mine, other in zip(*(result.positions for result in found), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_what_is_protected_in_words():
    assert Policy("p").protected == "nothing"
    words = Policy("p", rows="last", keep_observed=True, sinks=4, text=1.0, text_tokens=9).protected
    assert words == (
        "the first 4 tokens; the observation window; "
        "text before image tokens, up to 100% of a layer's share or 9 tokens"
    )
    with pytest.raises(PolicyError, match=r"text 0\.5 does not fit decode 'sliding'"):
        Policy("p", text=0.5, decode="sliding")
    with pytest.raises(PolicyError, match="text_tokens 3 does not fit decode 'lowest'"):
        Policy("p", rows="all", text_tokens=3, decode="lowest")
    with pytest.raises(PolicyError, match=r"text 1\.5 is outside 0 to 1"):
        Policy("p", text=1.5)
    with pytest.raises(PolicyError, match="text_tokens -1 is not a whole number"):
        Policy("p", text_tokens=-1)
