"""Observation by probes: image tokens run a second time, compared with transformers' attention; then discarded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlkv import Policy
from vlkv.backend.base import ObservedScores
from vlkv.errors import PolicyError
from vlkv.generation.fork import Variant
from vlkv.generation.question import Question

PROMPT = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
PROBED = {
    reduce: Policy(
        f"probe-{reduce}", rows="probe", reduce=reduce, sinks=1, keep_observed=True, per_head=False
    )
    for reduce in ("sum", "max")
}
ROWS_MAX = Policy("rows-max", rows="post_vision", reduce="max", per_head=False)


def attention(reference, embeds, heads):
    """Returns attention per layer, `[rows, Hkv, T]`, summed over each KV head's query heads."""
    with torch.no_grad():
        found = reference.model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            output_attentions=True,
        ).attentions
    every = [layer[0].numpy() for layer in found]
    return [layer.reshape(heads, -1, *layer.shape[1:]).sum(axis=1).transpose(1, 0, 2) for layer in every]


def embeddings(reference, prompt, pictures):
    model, config = reference.model, reference.model.config
    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.from_numpy(prompt.token_ids)[None])
        features = model.get_image_features(
            reference.inputs(PROMPT, pictures)["pixel_values"],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output
        embeds[0, torch.from_numpy(prompt.image_positions)] = torch.cat(list(features))
    return embeds


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_scores_are_those_of_the_picture_read_twice(engine_of, reference_of, pictures, reduce):
    engine, reference = engine_of("llama-gqa-tied"), reference_of("llama-gqa-tied", "float64")
    asked = Question(PROMPT, pictures, policy=PROBED[reduce], budget=0.8, max_new_tokens=3, scores=True)
    result, prompt = engine.generate_batch([asked])[0], engine.prompt(asked)
    end, heads = prompt.last_image + 1, engine.manifest.text.kv_heads
    embeds = embeddings(reference, prompt, pictures)
    places = torch.from_numpy(prompt.image_positions)
    twice = torch.cat([embeds[:, :end], embeds[:, places]], dim=1)
    assert len(places) <= 64  # one call, so that each probe sees all earlier ones
    for got, weights in zip(result.scores, attention(reference, twice, heads), strict=True):
        rows = weights[end:, :, :end]
        want = rows.max(axis=0) if reduce == "max" else rows.sum(axis=0)
        np.testing.assert_allclose(got[:, :end], want, rtol=1e-4, atol=1e-5)
        assert not got[:, end:].any()
    for kept in result.positions:
        assert set(range(end, result.prompt_tokens)) <= set(kept[0].tolist())
        assert 0 in kept[0]


def test_the_largest_row_of_the_question(engine_of, reference_of, pictures):
    engine, reference = engine_of("llama-gqa-tied"), reference_of("llama-gqa-tied", "float64")
    asked = Question(PROMPT, pictures, policy=ROWS_MAX, budget=0.5, max_new_tokens=3, scores=True)
    result, prompt = engine.generate_batch([asked])[0], engine.prompt(asked)
    embeds = embeddings(reference, prompt, pictures)
    for got, weights in zip(
        result.scores, attention(reference, embeds, engine.manifest.text.kv_heads), strict=True
    ):
        np.testing.assert_allclose(got, weights[prompt.last_image + 1 :].max(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prune", [None, "diverse:0.5"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_probes_leave_the_full_cache_as_it_was(engine_of, pictures, prune, reduce):
    """All paths keep the same, and with a budget of 1 the answer is that of the full cache."""
    engine = engine_of("llama-gqa-tied")
    asked = Question(PROMPT, pictures, max_new_tokens=9, scores=True, prune=prune)
    variants = [Variant(PROBED[reduce], 0.4), Variant(PROBED[reduce], 1.0)]
    found = engine.read(asked).answer(variants)
    alone = [
        engine.generate_batch([replace(asked, policy=variant.policy, budget=variant.budget)])[0]
        for variant in variants
    ]
    chats = [engine.chat(PROBED[reduce], variant.budget, "reusable") for variant in variants]
    asked_chats = [chat.ask(PROMPT, pictures, max_new_tokens=9, scores=True, prune=prune) for chat in chats]
    full = engine.generate_batch([replace(asked, policy="full")])[0]
    assert alone[1].token_ids == full.token_ids
    for one, *others in zip(alone, found, asked_chats, strict=True):
        for other in others:
            assert one.token_ids == other.token_ids
            for scores, same in zip(one.scores, other.scores, strict=True):
                np.testing.assert_array_equal(scores, same)
    second = [chat.ask("what is the name", max_new_tokens=9, scores=True) for chat in chats]
    end = engine.prompt(asked).last_image + 1
    for first, later in zip(asked_chats, second, strict=True):
        for scores, same in zip(first.scores, later.scores, strict=True):
            np.testing.assert_array_equal(scores[:, :end], same[:, :end])


def test_without_a_picture_the_last_rows_are_observed(engine_of):
    engine = engine_of("llama-gqa-tied")
    same = replace(PROBED["sum"], name="last", rows="last")
    results = [
        engine.generate(PROMPT, policy=policy, budget=0.6, max_new_tokens=4)
        for policy in (PROBED["sum"], same)
    ]
    assert results[0].token_ids == results[1].token_ids
    for kept, other in zip(results[0].positions, results[1].positions, strict=True):
        np.testing.assert_array_equal(kept, other)


def test_contradictions():
    with pytest.raises(PolicyError, match="reduce 'max' needs observed rows"):
        Policy("x", reduce="max")
    with pytest.raises(PolicyError, match="reduce 'max' needs observed rows"):
        Policy("x", rows="all", reduce="max", decode="lowest")
    for rows in ("none", "all", "probe"):
        with pytest.raises(PolicyError, match="reduce 'weighted'"):
            Policy("x", rows=rows, reduce="weighted")
    with pytest.raises(PolicyError, match="allocation 'vision' needs observed rows"):
        Policy("x", allocation="vision")
    with pytest.raises(PolicyError, match="rows 'probe' is discarded"):
        Policy("x", rows="probe", decode="lowest")


def test_an_engine_that_adds_rows_in_its_graph_refuses_single_rows(engine_of, pictures):
    engine = engine_of("llama-gqa-tied", "functions")
    for policy, reduce in ((PROBED["max"], "max"), ("tgv-kv", "weighted")):
        with pytest.raises(PolicyError, match=f"reduce '{reduce}' does not fit .* --operators native"):
            engine.generate(PROMPT, pictures, policy=policy)
    with pytest.raises(PolicyError, match="this engine's graph adds the rows; use an engine"):
        ObservedScores([], np.zeros((0, 1), np.float32), 4).one(0)
    assert engine.generate(PROMPT, pictures, policy=PROBED["sum"], max_new_tokens=2).kept_tokens
