"""Compares what every policy keeps of a whole checkpoint's prompt with the papers' definitions on float64 attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models import prompts
from oracles import policies as oracle
from vlkv import POLICIES
from vlkv.policies.observe import PROBES

NAMES = [name for name in POLICIES if name != "full"]
# a weight differs between float32 and float64 by at most this share of itself: 2^-24 for each of about 2500 terms
# before it, adding up like a random walk, times logits of attention of up to 30
MARGIN = 2.0**-24 * 2500**0.5 * 30


@pytest.fixture(scope="module")
def attention(engine_of, reference_of, pictures):
    """Returns the attention `[L, Hq, T, T]` of a shape and case in float64."""
    known = {}

    def make(name, case):
        if (name, case) not in known:
            engine, reference = engine_of(name), reference_of(name, "float64")
            given = prompts.inputs(engine, reference, prompts.question(case, pictures))
            known[name, case] = np.stack(reference.attention(given))
        return known[name, case]

    return make


@pytest.fixture(scope="module")
def probed(engine_of, reference_of, pictures):
    """Returns the attention `[L, Hq, W, T]` of image tokens that run a second time behind the last picture."""
    known = {}

    def make(image, case):
        if case not in known:
            engine, reference = engine_of("mistral"), reference_of("mistral", "float64")
            given = prompts.inputs(engine, reference, prompts.question(case, pictures))
            end, length = int(image[-1]) + 1, given["input_ids"].shape[1]
            rows = []
            for first in range(0, len(image), PROBES):
                again = image[first : first + PROBES].tolist()
                positions = [*range(end), *range(end + first, end + first + len(again))]
                rows.append(reference.attention_of(given, image, [*range(end), *again], positions))
            rows = [part[:, :, end:, :end] for part in rows]
            known[case] = np.zeros((*rows[0].shape[:2], len(image), length))
            known[case][:, :, :, :end] = np.concatenate(rows, axis=2)
        return known[case]

    return make


def assert_kept(result, want, scores):
    """Asserts the same positions, except where two scores are equal within rounding."""
    for got, lists, score in zip(result.positions, want, scores, strict=True):
        assert got.shape == (len(lists), len(lists[0]))
        for mine, theirs, rating in zip(got.tolist(), lists, score, strict=True):
            assert mine == sorted(set(mine))
            gone, extra = sorted(set(theirs) - set(mine)), sorted(set(mine) - set(theirs))
            assert sorted(rating[gone]) == pytest.approx(sorted(rating[extra]), rel=MARGIN)


@pytest.mark.parametrize("budget", [0.35, 0.1])
@pytest.mark.parametrize("case", prompts.CASES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operators", ["native", "functions"])
def test_kept_positions(operators, name, case, budget, engine_of, reference_of, attention, probed, pictures):
    if operators == "functions" and POLICIES[name].reduce != "sum":
        pytest.skip("graphs that score by themselves add rows, and know no largest one")
    if operators == "functions" and POLICIES[name].recall is not None:
        pytest.skip("ONNX Runtime's own operators know no pages")
    # pages of evicted tokens do not go with sliding windows
    shape = "mistral" if POLICIES[name].recall is None else "llama-gqa-tied"
    engine, weights = engine_of(shape, operators), attention(shape, case)
    asked = prompts.question(case, pictures, policy=name, budget=budget, max_new_tokens=1)
    (result,) = engine.generate_batch([asked])
    last = engine.prompt(asked).last_image
    heads = engine.manifest.text.kv_heads
    gamma = None
    if name == "vl-cache":
        rows = oracle.rows_after_the_picture(result.prompt_tokens, last, 32)
        gamma, near = oracle.sparsity(weights, rows)
        assert (np.abs(np.array(result.sparsity) - gamma) <= near + 2.0**-24).all()
        gamma = result.sparsity
    image, probes = engine.prompt(asked).image_positions, None
    if name == "picture-once" and len(image):
        probes = probed(image, case)
    rows = {}
    if name == "mixkv":
        reference = reference_of("mistral", "float64")
        given = prompts.inputs(engine, reference, asked)
        rows = dict(zip(("keys", "values"), reference.keys_and_values(given), strict=True))
    want, scores = oracle.kept(
        name, weights, heads, last, budget, gamma=gamma, image=image, probes=probes, **rows
    )
    assert result.kept_tokens == [len(layer[0]) for layer in want]
    assert sum(result.kept_tokens) == max(len(want), round(budget * len(want) * result.prompt_tokens))
    assert_kept(result, want, scores)


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv"])
@pytest.mark.parametrize("case", ["text between", "no picture"])
def test_a_small_window_leaves_places_to_win(name, case, engine_of, attention, pictures):
    engine, weights = engine_of("llama-gqa-tied"), attention("llama-gqa-tied", case)
    policy = replace(POLICIES[name], window=4)
    asked = prompts.question(case, pictures, policy=policy, budget=0.4, max_new_tokens=1)
    (result,) = engine.generate_batch([asked])
    last = engine.prompt(asked).last_image
    want, scores = oracle.kept(name, weights, engine.manifest.text.kv_heads, last, 0.4, window=4)
    assert result.kept_tokens == [len(layer[0]) for layer in want]
    assert (len(set(result.kept_tokens)) > 2) == (name == "pyramidkv")
    assert_kept(result, want, scores)
    # pooling changes the result here
    plain = replace(policy, pooling="none", kernel=1)
    (other,) = engine.generate_batch([replace(asked, policy=plain)])
    assert any((a != b).any() for a, b in zip(result.positions, other.positions, strict=True))


@pytest.mark.parametrize("anchors", ["published", "spread"])
@pytest.mark.parametrize("case", ["text between", "no picture"])
def test_anchors_that_scatter(anchors, case, engine_of, attention, pictures):
    engine, weights = engine_of("mistral"), attention("mistral", case)
    policy = replace(POLICIES["elastic"], anchors=anchors)
    asked = prompts.question(case, pictures, policy=policy, budget=0.3, max_new_tokens=1)
    (result,) = engine.generate_batch([asked])
    last, heads = engine.prompt(asked).last_image, engine.manifest.text.kv_heads
    want, _ = oracle.kept(f"elastic-{anchors}", weights, heads, last, 0.3)
    by_scores, _ = oracle.kept("elastic", weights, heads, last, 0.3)
    assert result.kept_tokens == [len(layer[0]) for layer in want]
    # if a score and its neighbour in rank round differently, two numbers of argsort change
    for got, lists, others in zip(result.positions, want, by_scores, strict=True):
        assert len(set(got[0].tolist()) ^ set(lists[0])) <= (4 if anchors == "published" else 0)
        assert set(got[0].tolist()) != set(others[0])


def test_scores_on_request(engine_of, attention, pictures):
    engine, weights = engine_of("mistral"), attention("mistral", "text between")
    asked = prompts.question("text between", pictures, policy="elastic", max_new_tokens=1)
    (silent,) = engine.generate_batch([asked])
    (result,) = engine.generate_batch([replace(asked, scores=True)])
    want = oracle.column_sums(weights, range(result.prompt_tokens), engine.manifest.text.kv_heads)
    assert silent.scores is None
    # sums of float32 weights whose errors are bounded as above
    np.testing.assert_allclose(np.stack(result.scores), want, rtol=MARGIN, atol=MARGIN)
    assert "scores" not in result.to_dict()
