"""Compares engines of all shapes with eager float32 transformers: prompts, pictures, logits and greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest

from models import tiny
from vlkv import Question
from vlkv.inputs.image import open_image
from vlkv.inputs.preprocess import pixel_values

OPERATORS = ("native", "functions")
PROMPT = "what is the total of form w0 w1"
LONG = " ".join(f"w{number % 20}" for number in range(90))
STEPS = 64

shapes = pytest.mark.parametrize("name", tiny.SHAPES)
both = pytest.mark.parametrize("operators", OPERATORS)


@shapes
@pytest.mark.parametrize("images", [0, 1, 2])
def test_ids_and_pixels_equal_the_processors(name, images, engine_of, reference_of, pictures):
    engine, given = engine_of(name), pictures[:images]
    theirs = reference_of(name).inputs(PROMPT, given)
    prompt = engine.prompt(Question(PROMPT, given))
    assert prompt.token_ids.tolist() == theirs["input_ids"][0].tolist()
    facts = engine.manifest.image
    assert len(prompt.image_positions) == images * facts.tile_features
    assert (prompt.token_ids[prompt.image_positions] == facts.token_id).all()
    if images:
        shown = zip(given, prompt.pictures, strict=True)
        mine = np.concatenate([pixel_values(open_image(path), layout, facts) for path, layout in shown])
        pixels = theirs["pixel_values"].numpy()
        # one step of an 8-bit level, after rescaling and normalising
        step = facts.rescale / min(facts.std)
        assert mine.shape == pixels.shape
        assert np.abs(mine - pixels).max() <= step
        # and few pixels are one level off
        assert (np.abs(mine - pixels) > step / 2).mean() <= 0.01


@shapes
@both
def test_logits_of_prefill_and_decode(
    name, operators, engine_of, reference_of, prefilled, pictures, tolerance, rng
):
    tokens = rng.integers(len(tiny.SPECIAL), tiny.VOCAB, STEPS)
    reference = reference_of(name)
    want = reference.forced(reference.inputs(PROMPT, pictures[:1]), tokens)
    got = prefilled(
        engine_of(name, operators), PROMPT, pictures[:1], policy="full", max_new_tokens=STEPS
    ).forced(tokens)
    assert got.shape == want.shape == (STEPS + 1, tiny.VOCAB)
    # the limit is far below the difference between two tokens' logits
    assert tolerance(want) < 1e-4 * np.ptp(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(want))


@shapes
@both
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_tokens(name, operators, images, engine_of, reference_of, pictures):
    want = reference_of(name).generate(PROMPT, pictures[:images], STEPS)
    result = engine_of(name, operators).generate(
        PROMPT, pictures[:images], policy="full", max_new_tokens=STEPS
    )
    assert result.token_ids == want
    ended = want[-1] in engine_of(name).manifest.tokens.eos
    assert result.finish_reason == ("stop" if ended else "length")
    assert ended or len(want) == STEPS


@shapes
@both
def test_chunked_prefill_equals_whole(name, operators, engine_of, prefilled, pictures, tolerance):
    engine = engine_of(name, operators)
    asked = {"prompt": LONG, "images": pictures, "policy": "vl-cache", "budget": 0.3, "max_new_tokens": 8}
    whole = prefilled(engine, **asked)
    length = whole.result.prompt_tokens
    tokens = np.arange(20, 28)
    want = whole.forced(tokens)
    # 7 cuts pictures and observed rows, 31 is no divisor, the last leaves one token over
    for chunk in (7, 31, length - 1):
        part = prefilled(engine, chunk=chunk, **asked)
        assert part.result.kept_tokens == whole.result.kept_tokens
        for mine, theirs in zip(part.result.positions, whole.result.positions, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        # the same counts over the same pairs, unless a weight lies within rounding of the threshold
        np.testing.assert_allclose(part.result.sparsity, whole.result.sparsity, atol=1e-4)
        np.testing.assert_allclose(part.forced(tokens), want, rtol=0, atol=tolerance(want))


@shapes
def test_a_chunk_of_one_token_is_decoding(name, engine_of, prefilled, pictures, tolerance):
    asked = {"prompt": PROMPT, "images": pictures[:1], "policy": "full"}
    whole = prefilled(engine_of(name), **asked)
    single = prefilled(engine_of(name), chunk=1, **asked)
    np.testing.assert_allclose(single.logits, whole.logits, rtol=0, atol=tolerance(whole.logits))


@shapes
@both
def test_batch_of_unequal_prompts_equals_each_alone(name, operators, engine_of, pictures):
    engine = engine_of(name, operators)
    questions = [
        Question("what", (), "vl-cache", 0.5, 9),
        Question(PROMPT, pictures[:1], "vl-cache", 0.2, 24),
        Question(LONG, pictures, "full", None, 17),
        Question(LONG[:120], pictures, "vl-cache", 0.1, 1),
        Question("date of form", pictures[1:], "vl-cache", 1.0, 12, temperature=1.5, seed=4),
    ]
    together = engine.generate_batch(questions)
    assert len({result.prompt_tokens for result in together}) == len(questions)
    for question, result in zip(questions, together, strict=True):
        (alone,) = engine.generate_batch([question])
        assert result.token_ids == alone.token_ids
        assert (result.text, result.finish_reason) == (alone.text, alone.finish_reason)
        assert (result.kept_tokens, result.sparsity) == (alone.kept_tokens, alone.sparsity)
        assert (result.positions is None) == (alone.positions is None) == (question.policy == "full")
        for mine, theirs in zip(result.positions or (), alone.positions or (), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_no_questions_no_answers(engine_of):
    assert engine_of("llama").generate_batch([]) == []


@shapes
@both
def test_budget_of_all_equals_full_bit_for_bit(name, operators, engine_of, prefilled, pictures):
    engine = engine_of(name, operators)
    full, whole = (
        prefilled(engine, PROMPT, pictures, policy=policy, budget=1.0, max_new_tokens=32)
        for policy in ("full", "vl-cache")
    )
    assert whole.result.kept_tokens == full.result.kept_tokens
    for kept in whole.result.positions:
        np.testing.assert_array_equal(kept, np.broadcast_to(np.arange(kept.shape[1]), kept.shape))
    for kind in ("keys", "values"):
        for mine, theirs in zip(getattr(whole.cache, kind), getattr(full.cache, kind), strict=True):
            length = full.result.prompt_tokens
            np.testing.assert_array_equal(mine[:, :, :length], theirs[:, :, :length])
    tokens = np.arange(20, 52)
    np.testing.assert_array_equal(whole.forced(tokens), full.forced(tokens))
    answers = [
        engine.generate(PROMPT, pictures, policy=policy, budget=1.0, max_new_tokens=32)
        for policy in ("full", "vl-cache")
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].cache_bytes == answers[1].cache_bytes == answers[0].cache_bytes_full
