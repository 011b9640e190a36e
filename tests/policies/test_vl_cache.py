"""VL-Cache end to end against float64: scores, split, kept tokens, and what decoding then sees.

Attention comes from transformers (eager, float64). Scores, sparsity, split and selection are computed here and in
`tests/oracles`. Float32 may differ within rounding; each comparison states its margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from models import tiny
from oracles import allocate, evict

PROMPT = "what is the total of form w0 w1 name date city w2 w3 w4 w5 w6 w7 w8 w9"
P = 0.01
BUDGET = 0.35
STEPS = 24
# a weight differs between float32 and float64 by at most this share of itself: 2^-24 for each of about 2500 terms
# before it, adding up like a random walk, times logits of attention of up to 30
MARGIN = 2.0**-24 * 2500**0.5 * 30

shapes = pytest.mark.parametrize("name", tiny.SHAPES)
both = pytest.mark.parametrize("operators", ["native", "functions"])


@dataclass
class Layer:
    """The definition of one layer: score `[Hkv, S]`, pairs, pairs below the threshold, pairs too near to tell."""

    score: np.ndarray
    pairs: int
    below: int
    near: int

    @property
    def sparsity(self):
        return self.below / self.pairs


def observe(attention, kv_heads, rows):
    """Sums `[Hq, S, S]` over observed rows and each KV head's query heads. Counts weights under the threshold."""
    heads, length, _ = attention.shape
    seen = attention[:, rows]
    score = seen.reshape(kv_heads, heads // kv_heads, len(rows), length).sum(axis=(1, 2))
    attended = np.arange(length)[None, :] <= np.asarray(rows)[:, None]
    limit = P * seen.max(axis=-1, keepdims=True)
    below = attended & (seen < limit)
    near = attended & (np.abs(seen / limit - 1) <= 2 * MARGIN)
    return Layer(score, heads * int(attended.sum()), int(below.sum()), int(near.sum()))


@pytest.fixture(scope="module")
def definition(engine_of, reference_of, pictures):
    """Returns a shape's layers by the definition, for a prompt with two pictures and one with none."""
    known = {}

    def make(name, images):
        if (name, images) not in known:
            reference, text = reference_of(name, "float64"), engine_of(name).manifest.text
            inputs = reference.inputs(PROMPT, pictures[:images])
            ids = inputs["input_ids"][0].tolist()
            token = engine_of(name).manifest.image.token_id
            first = len(ids) - ids[::-1].index(token) if images else len(ids) - 32
            rows = list(range(max(0, first), len(ids)))
            assert 0 < len(rows) < len(ids) or not images
            layers = [observe(layer, text.kv_heads, rows) for layer in reference.attention(inputs)]
            known[name, images] = (inputs, layers)
        return known[name, images]

    return make


@shapes
@both
@pytest.mark.parametrize("images", [0, 2])
def test_sparsity_split_and_kept_tokens(name, operators, images, engine_of, definition, pictures):
    inputs, layers = definition(name, images)
    length = inputs["input_ids"].shape[1]
    result = engine_of(name, operators).generate(
        PROMPT, pictures[:images], policy="vl-cache", budget=BUDGET, max_new_tokens=1
    )
    assert result.prompt_tokens == length
    # the measured value is not trivial here
    assert min(layer.below for layer in layers) > 0
    assert len({layer.below for layer in layers}) > 1
    for got, layer in zip(result.sparsity, layers, strict=True):
        # a float32 share of integers, off by at most the pairs that are too near the threshold
        assert abs(got - layer.sparsity) <= layer.near / layer.pairs + 2.0**-24

    total = round(BUDGET * len(layers) * length)
    floor = math.floor(0.01 * length + 0.5)
    real = allocate.filled(
        [1 - layer.sparsity for layer in layers],
        [max(1, floor)] * len(layers),
        [length] * len(layers),
        total,
    )
    assert sum(result.kept_tokens) == total
    for got, want in zip(result.kept_tokens, real, strict=True):
        # rounding to whole tokens, shifted by the pairs that are too near
        slack = max(layer.near / layer.pairs for layer in layers) * length
        assert abs(got - want) < 1 + slack

    for kept, count, layer in zip(result.positions, result.kept_tokens, layers, strict=True):
        assert kept.shape == (engine_of(name).manifest.text.kv_heads, count)
        recent = round(0.1 * count)
        for head, mine in enumerate(kept):
            score = layer.score[head]
            want = evict.select(score, length, count, 0, recent)
            gone, extra = sorted(set(want) - set(mine)), sorted(set(mine) - set(want))
            assert mine.tolist() == sorted(set(mine.tolist()))
            assert set(range(length - recent, length)) <= set(mine.tolist())
            for lost, taken in zip(gone, extra, strict=True):
                # tokens may differ only if their scores are equal within rounding
                assert abs(score[lost] - score[taken]) <= MARGIN * max(score[lost], score[taken])


@shapes
@both
def test_decoding_sees_what_was_kept_and_no_more(
    name, operators, engine_of, reference_of, definition, prefilled, pictures, tolerance, rng
):
    inputs, _ = definition(name, 2)
    got = prefilled(
        engine_of(name, operators), PROMPT, pictures, policy="vl-cache", budget=0.1, max_new_tokens=STEPS
    )
    tokens = rng.integers(len(tiny.SPECIAL), tiny.VOCAB, STEPS)
    reference = reference_of(name, "float64")
    masked = reference.forced(inputs, tokens, got.result.positions)
    whole = reference.forced(inputs, tokens)
    logits = got.forced(tokens)
    limit = tolerance(masked)
    np.testing.assert_allclose(logits, masked, rtol=0, atol=limit)
    # the prompt's last token saw everything; what follows does not
    np.testing.assert_allclose(logits[0], whole[0], rtol=0, atol=limit)
    assert np.abs(logits[1:] - whole[1:]).max() > 100 * limit


def test_heads_of_a_grouped_checkpoint_keep_different_tokens(engine_of, pictures):
    engine = engine_of("mistral")
    text = engine.manifest.text
    assert text.query_heads > text.kv_heads > 1
    result = engine.generate(PROMPT, pictures, policy="vl-cache", budget=BUDGET, max_new_tokens=1)
    assert any((kept[0] != kept[1]).any() for kept in result.positions)
    assert len(set(result.kept_tokens)) > 1


def test_chunks_add_up_to_the_definition(engine_of, definition, prefilled, pictures):
    _, layers = definition("mistral", 2)
    for operators in ("native", "functions"):
        part = prefilled(
            engine_of("mistral", operators), PROMPT, pictures, chunk=5, policy="vl-cache", budget=BUDGET
        )
        for got, layer in zip(part.result.sparsity, layers, strict=True):
            assert abs(got - layer.sparsity) <= layer.near / layer.pairs + 2.0**-24
