"""A pruned prompt: parity with transformers, positions of the whole prompt, and equal answers on every path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.steps import policies_of
from vlkv import POLICIES
from vlkv.errors import PolicyError
from vlkv.generation.fork import Variant
from vlkv.generation.question import Question
from vlkv.pruning.methods import BY_SHARE

PROMPT = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
METHODS = ("duplicates", "blank", "diverse:0.4", "relevant:0.4")
# 60 products of the head, 3 layers, float32, as in test_fork.py
MARGIN = 2.0**-24 * 3 * 60**0.5 * 30


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Two pictures of blank paper with some noise."""
    base = tmp_path_factory.mktemp("forms")
    paths = []
    for seed in range(2):
        page = np.full((28, 42, 3), 250, np.uint8)
        page[3:12, 5:20] = np.random.default_rng(seed).integers(0, 256, (9, 15, 3), np.uint8)
        paths.append(base / f"{seed}.png")
        Image.fromarray(page).resize((420, 280), Image.Resampling.NEAREST).save(paths[-1])
    return paths


@pytest.mark.parametrize("method", METHODS)
def test_logits_equal_those_of_transformers_without_these_tokens(engine_of, reference_of, forms, method):
    engine, reference = engine_of("llama-gqa-tied"), reference_of("llama-gqa-tied", "float64")
    asked = Question(PROMPT, forms, policy="full", prune=method)
    tokens = [7, 11, 20]
    steps = engine.forced(asked, tokens)
    got = np.stack([step.logits for step in steps])
    result = steps.result
    assert 0 < result.pruned_tokens < result.image_tokens
    run = result.positions[0][0].astype(np.int64)
    assert set(range(result.prompt_tokens)) - set(run.tolist()) <= set(result.image_positions.tolist())
    model, config = reference.model, reference.model.config
    with torch.no_grad():
        ids = torch.from_numpy(np.append(engine.prompt(asked).token_ids, tokens))[None]
        embeds = model.get_input_embeddings()(ids)
        features = model.get_image_features(
            reference.inputs(PROMPT, forms)["pixel_values"],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output
        embeds[0, torch.from_numpy(result.image_positions)] = torch.cat(list(features))
        places = np.append(run, result.prompt_tokens + np.arange(len(tokens)))
        want = model(
            inputs_embeds=embeds[:, places],
            position_ids=torch.from_numpy(places)[None],
            attention_mask=torch.ones(1, len(places), dtype=torch.int64),
        ).logits[0, -len(tokens) - 1 :]
    np.testing.assert_allclose(got, want.numpy(), atol=MARGIN, rtol=2e-5)


@pytest.mark.parametrize("operators", ["native", "functions"])
def test_answers_are_equal_on_every_path(engine_of, forms, operators):
    engine = engine_of("llama-gqa-tied", operators)
    asked = Question(PROMPT, forms, max_new_tokens=12, scores=True, prune="diverse:0.4")
    variants = [
        Variant(policy, 1.0 if policy.keeps_all else 0.3) for policy in map(POLICIES.get, policies_of(engine))
    ]
    questions = [replace(asked, policy=variant.policy, budget=variant.budget) for variant in variants]
    alone = [engine.generate_batch([question])[0] for question in questions]
    found = engine.read(asked).answer(variants)
    first = [engine.chat(question.policy, question.budget, "reusable") for question in questions]
    chats = [chat.ask(PROMPT, forms, max_new_tokens=12, scores=True, prune=asked.prune) for chat in first]
    for result, *others in zip(alone, found, chats, engine.generate_batch(questions), strict=True):
        pruned = set(range(result.prompt_tokens)) - set(found[0].positions[0][0].tolist())
        assert result.pruned_tokens == len(pruned) > 0
        left = result.prompt_tokens - len(pruned)
        layers = len(result.kept_tokens)
        wanted = layers * left if result.policy == "full" else round(0.3 * layers * result.prompt_tokens)
        assert sum(result.kept_tokens) == min(wanted, layers * left)  # the budget is that of the whole prompt
        for kept, scores in zip(result.positions, result.scores, strict=True):
            assert not pruned & set(kept.ravel().tolist())
            assert not scores[:, sorted(pruned)].any()
        for other in others:
            assert other.token_ids == result.token_ids
            assert other.pruned_tokens == result.pruned_tokens
            for kept, same in zip(result.positions, other.positions, strict=True):
                np.testing.assert_array_equal(kept, same)
            for scores, same in zip(result.scores, other.scores, strict=True):
                np.testing.assert_array_equal(scores, same)


def test_a_method_sees_the_question(engine_of, forms, monkeypatch):
    """The embeddings of the text behind the last picture, and of all text where none follows."""
    engine, seen = engine_of("llama-gqa-tied"), []

    class Watching:
        def __init__(self, share):
            pass

        def keep(self, picture):
            seen.append(picture.question.copy())
            return np.ones(len(picture.features), bool)

    monkeypatch.setitem(BY_SHARE, "relevant", Watching)
    for text in ("date <image> total <image> city name", "city name <image> <image>"):
        seen.clear()
        asked = Question(text, forms, raw=True, policy="full", prune="relevant:0.3", max_new_tokens=1)
        engine.generate_batch([asked])
        ids, image = engine.prompt(asked).token_ids, engine.prompt(asked).image_positions
        behind = [n for n in range(len(ids)) if n > image[-1]]
        if text.endswith("<image>"):
            behind = [n for n in range(len(ids)) if n not in image]
        assert len(seen) == 2 and len(behind) >= 2
        for question in seen:
            np.testing.assert_array_equal(question, engine.model.embedding.rows(ids[behind]))


def test_a_scheduler_answers_the_same(engine_of, forms):
    engine = engine_of("llama-gqa-tied")
    questions = [
        Question(
            PROMPT, forms, policy=name, budget=None if name == "full" else 0.3, max_new_tokens=9, prune=method
        )
        for name in POLICIES
        for method in METHODS
    ]
    with engine.scheduler(slots=3) as scheduler:
        tickets = [scheduler.submit(question) for question in questions]
        for ticket in tickets:
            for _ in ticket:
                pass
        got = [ticket.result for ticket in tickets]
    for question, result in zip(questions, got, strict=True):
        assert result.token_ids == engine.generate_batch([question])[0].token_ids


def test_a_later_turn_equals_the_whole_conversation(engine_of, forms):
    """A reusable cache of a pruned picture gives what its compressed copy would, and counts the same tokens."""
    engine = engine_of("llama-gqa-tied")
    for policy in ("full", "shared-question", "vl-cache"):
        chats = [
            engine.chat(policy, None if policy == "full" else 1.0, keep)
            for keep in ("reusable", "compressed")
        ]
        for turn in (PROMPT, "what is the name w10 w11"):
            images = forms if turn == PROMPT else ()
            results = [chat.ask(turn, images, max_new_tokens=6, prune="duplicates") for chat in chats]
            assert results[0].token_ids == results[1].token_ids
            assert results[0].pruned_tokens == results[1].pruned_tokens > 0
            assert results[0].kept_tokens == results[1].kept_tokens


def test_a_picture_in_a_later_turn_is_pruned_too(engine_of, forms):
    engine = engine_of("llama-gqa-tied")
    chat = engine.chat("shared-question", 0.5, "reusable")
    first = chat.ask(PROMPT, forms[:1], max_new_tokens=4, prune="duplicates")
    second = chat.ask("what is the name", forms[1:], max_new_tokens=4, prune="duplicates")
    both = sum(
        engine.generate(PROMPT, [form], policy="full", max_new_tokens=1, prune="duplicates").pruned_tokens
        for form in forms
    )
    assert first.pruned_tokens < second.pruned_tokens == both


def test_a_text_alone_and_a_picture_without_duplicates_change_nothing(engine_of, pictures):
    engine = engine_of("llama-gqa-tied")
    for images, method in (((), "duplicates"), ((), "diverse:0.1"), (pictures, "diverse:1")):
        results = [
            engine.generate(PROMPT, images, policy="snapkv", budget=0.5, max_new_tokens=6, prune=prune)
            for prune in (None, method)
        ]
        assert results[0].token_ids == results[1].token_ids
        assert results[0].kept_tokens == results[1].kept_tokens
        assert results[1].pruned_tokens == 0


def test_an_unknown_method_is_refused(engine_of, forms):
    with pytest.raises(PolicyError, match="unknown prune 'x'"):
        engine_of("llama-gqa-tied").generate(PROMPT, forms, prune="x")
