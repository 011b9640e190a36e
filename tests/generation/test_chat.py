"""`Engine.chat`: later questions use what was kept, or the full keys and values, which are scored anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.evicting import Evicting
from oracles import decoding
from oracles import policies as oracle
from vlkv import POLICIES
from vlkv.errors import PolicyError, PromptError
from vlkv.generation.chat import Conversation
from vlkv.generation.question import Question
from vlkv.generation.sequence import Sequence

FIRST = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
SECOND = "what is the name w10 w11 w12 w13"
THIRD = "date w14 w15"
NEW = 9
MARGIN = 2.0**-24 * 2500**0.5 * 30


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-gqa-tied")


@pytest.fixture(scope="module")
def reference(reference_of):
    return reference_of("llama-gqa-tied", "float64")


def fresh_inputs(reference, ids, pictures, images):
    """Returns a whole conversation's embeddings for transformers. An answer may hold the image token's id as a word."""
    model, config = reference.model, reference.model.config
    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.from_numpy(ids)[None])
        if pictures:
            features = model.get_image_features(
                reference.inputs("what", pictures)["pixel_values"],
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
            ).pooler_output
            embeds[0, torch.from_numpy(images)] = torch.cat(list(features))
    return {"inputs_embeds": embeds, "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}


@pytest.fixture
def ends(monkeypatch):
    """Records the logits at the end of each turn when they are computed."""
    found = []
    for name in ("_prefill", "_extend"):
        original = getattr(Conversation, name)

        def noted(self, *arguments, original=original):
            made = original(self, *arguments)
            sequence = next(one for one in reversed(arguments) if isinstance(one, Sequence))
            found.append(sequence.logits.copy())
            return made

        monkeypatch.setattr(Conversation, name, noted)
    return found


@pytest.mark.parametrize("name", ["full", "vl-cache", "elastic", "h2o", "snapkv", "streaming-llm"])
def test_reusable_with_all_of_the_cache_equals_a_fresh_run(
    engine, reference, pictures, tolerance, ends, name
):
    chat = engine.chat(name, 1.0, keep="reusable")
    asked = [(FIRST, pictures), (SECOND, ()), (THIRD, pictures[:1])]
    for text, images in asked:
        result = chat.ask(text, images, max_new_tokens=NEW)
    ids = chat.token_ids
    assert result.prompt_tokens == len(ids) - len(chat._said(chat._state.last)[0])
    assert (ids[-len(chat._said(chat._state.last)[0]) :] == chat._said(chat._state.last)[0]).all()
    given = fresh_inputs(
        reference,
        ids[: result.prompt_tokens],
        [*pictures, pictures[0]],
        chat._state.last.prompt.image_positions,
    )
    want = reference.forced(given, result.token_ids[:-1])
    np.testing.assert_allclose(ends[-1], want[0], rtol=0, atol=tolerance(want))
    if name in ("full", "vl-cache", "snapkv"):
        assert result.token_ids == want.argmax(axis=1).tolist()
    assert [turn.text for turn in chat.turns] == [FIRST, SECOND, THIRD]
    assert chat.turns[-1].answer == result.text


def sums(attention, policy, result, begin):
    """Returns attention summed over the rows that a later turn observes, `[L, Hkv, T]`."""
    length = result.prompt_tokens
    first = {"post_vision": begin, "all": 0, "last": max(0, length - policy.window), "none": length}[
        policy.rows
    ]
    return oracle.column_sums(attention, range(first, length), len(result.positions[0]))


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("vl-cache", 32),
        ("elastic", 32),
        ("h2o", 32),
        ("snapkv", 5),
        ("pyramidkv", 5),
        # the window reaches back into the first turn, past its picture
        ("snapkv", 24),
        ("snapkv", 60),
        ("streaming-llm", 32),
    ],
)
def test_reusable_scores_anew(engine, reference, pictures, name, window):
    policy = replace(POLICIES[name], window=window)
    chat = engine.chat(policy, 0.2, keep="reusable")
    chat.ask(FIRST, pictures, max_new_tokens=NEW)
    begin = len(chat.token_ids)
    result = chat.ask(SECOND, max_new_tokens=NEW, scores=True)
    inputs = fresh_inputs(
        reference, chat.token_ids[: result.prompt_tokens], pictures, chat._state.last.prompt.image_positions
    )
    attention = np.stack(reference.attention(inputs))
    assert np.allclose(
        np.stack(result.scores), sums(attention, policy, result, begin), rtol=MARGIN, atol=MARGIN
    )
    heads = engine.manifest.text.kv_heads
    # VL-Cache observes the new question: the oracle is told that a picture ended before it
    last = begin - 1
    gamma = result.sparsity if name == "vl-cache" else None
    want, scores = oracle.kept(name, attention, heads, last, 0.2, window, gamma=gamma)
    assert result.kept_tokens == [len(layer[0]) for layer in want]
    for got, lists, score in zip(result.positions, want, scores, strict=True):
        for mine, theirs, rating in zip(got.tolist(), lists, score, strict=True):
            gone, extra = sorted(set(theirs) - set(mine)), sorted(set(mine) - set(theirs))
            assert sorted(rating[gone]) == pytest.approx(sorted(rating[extra]), rel=MARGIN)


def test_a_second_question_sees_other_tokens_when_scored_anew(engine, pictures):
    chat = engine.chat("vl-cache", 0.2, keep="reusable")
    first = chat.ask(FIRST, pictures, max_new_tokens=2)
    second = chat.ask(SECOND, max_new_tokens=2)
    image = first.image_tokens
    kept = [
        [set(head[head < image].tolist()) for layer in r.positions for head in layer] for r in (first, second)
    ]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("name", ["full", "vl-cache", "snapkv"])
def test_compressed_goes_on_in_what_was_kept(
    engine_of, reference, pictures, tolerance, ends, name, operators
):
    engine = engine_of("llama-gqa-tied", operators)
    budget = 1.0 if name == "full" else 0.3
    chat = engine.chat(name, budget)
    first = chat.ask(FIRST, pictures, max_new_tokens=NEW)
    run = begun(engine, reference, chat, first, pictures)
    second = chat.ask(SECOND, max_new_tokens=NEW)
    third = chat.ask(THIRD, max_new_tokens=NEW)
    at = {second.prompt_tokens: 1, third.prompt_tokens: 2}
    checked = 0
    for position in range(first.prompt_tokens, third.prompt_tokens):
        want = run.step(chat.token_ids[position])
        if position + 1 in at:
            np.testing.assert_allclose(ends[at[position + 1]], want, rtol=0, atol=tolerance(want))
            checked += 1
    assert checked == 2
    if name != "full":
        for layer, held in zip(third.positions, run.positions, strict=True):
            assert layer.tolist() == held
    added = third.prompt_tokens - first.prompt_tokens
    assert third.kept_tokens == [count + added for count in first.kept_tokens]


def begun(engine, reference, chat, first, pictures):
    """Runs the first turn in the reference and cuts it as the engine does."""
    ids = chat.token_ids[: first.prompt_tokens]
    layers, heads = engine.manifest.text.layers, engine.manifest.text.kv_heads
    every = [np.tile(np.arange(len(ids)), (heads, 1))] * layers
    return Evicting(
        reference,
        fresh_inputs(reference, ids, pictures, chat._state.last.prompt.image_positions),
        first.positions or every,
        False,
    )


def test_a_window_slides_over_later_turns(engine, reference, pictures, tolerance, ends):
    chat = engine.chat("streaming-llm", 0.2)
    first = chat.ask(FIRST, pictures, max_new_tokens=NEW)
    run = begun(engine, reference, chat, first, pictures)
    for position in range(first.prompt_tokens, first.prompt_tokens + NEW - 1):
        run.step(chat.token_ids[position])
        for layer, count in enumerate(first.kept_tokens):
            run.drop(layer, [run.positions[layer][0][4]] * len(run.positions[layer]))
            assert len(run.positions[layer][0]) == count
    second = chat.ask(SECOND, max_new_tokens=NEW)
    # the question sees everything that was cached before it, then the window slides past it
    for position in range(first.prompt_tokens + NEW - 1, second.prompt_tokens):
        want = run.step(chat.token_ids[position])
    np.testing.assert_allclose(ends[1], want, rtol=0, atol=tolerance(want))
    for layer, count in zip(second.positions, first.kept_tokens, strict=True):
        recent = range(second.prompt_tokens - count + 4, second.prompt_tokens)
        assert layer.tolist() == [[*range(4), *recent]] * len(layer)
    assert second.kept_tokens == first.kept_tokens
    assert second.cache_bytes == first.cache_bytes


@pytest.mark.parametrize("operators", ["native", "functions"])
def test_a_later_question_is_observed_before_the_lowest_go(engine_of, reference, pictures, operators):
    engine = engine_of("llama-gqa-tied", operators)
    chat = engine.chat("h2o", 0.3)
    first = chat.ask(FIRST, pictures, max_new_tokens=1, scores=True)
    run = begun(engine, reference, chat, first, pictures)
    second = chat.ask(SECOND, max_new_tokens=1)
    lists = []
    for kept, score in zip(first.positions, first.scores, strict=True):
        lists.append(decoding.Lowest(kept[0].tolist(), score.sum(axis=0, dtype=np.float64)[kept[0]]))
    for position in range(first.prompt_tokens, second.prompt_tokens):
        run.step(chat.token_ids[position])
        for layer, entries in enumerate(lists):
            seen = zip(run.positions[layer][0], run.attention[layer].sum(axis=0), strict=True)
            entries.step(position, dict(seen))
    for layer, entries in enumerate(lists):
        held = second.positions[layer][0].tolist()
        while order := entries.order():
            entries.drop(order[0])
        gone, extra = set(entries.entries) - set(held), set(held) - set(entries.entries)
        rated = [sorted(entries.scores[entry] for entry in part) for part in (gone, extra)]
        assert rated[0] == pytest.approx(rated[1], rel=MARGIN)
        assert len(held) == first.kept_tokens[layer]
        # the attention of the new rows is added
        eviction, valid = chat._state.last.eviction, second.kept_tokens[layer]
        mine = eviction.scores[layer][0, :, :valid].sum(axis=0)
        theirs = [entries.scores[entry] for entry in eviction.positions[layer][0, :valid].tolist()]
        np.testing.assert_allclose(mine, theirs, rtol=MARGIN)


@pytest.mark.parametrize("name", ["elastic", "h2o"])
@pytest.mark.parametrize("operators", ["native", "functions"])
def test_memory_over_many_turns(engine_of, pictures, name, operators):
    engine = engine_of("llama-gqa-tied", operators)
    chat = engine.chat(name, 0.2)
    first = chat.ask(FIRST, pictures, max_new_tokens=NEW)
    for _ in range(5):
        result = chat.ask(SECOND, max_new_tokens=NEW)
        held = [len(layer[0]) for layer in result.positions]
        grown = 0.2 * (result.prompt_tokens - first.prompt_tokens) + 1 if name == "elastic" else 0
        for count, before in zip(held, first.kept_tokens, strict=True):
            assert before <= count <= before + grown
        assert all(len(set(head.tolist())) == len(head) for layer in result.positions for head in layer)
    slot = 2 * engine.manifest.text.kv_heads * engine.manifest.text.head_dim * 4
    assert result.cache_bytes <= slot * sum(count + 4 for count in held)


def test_turns_are_the_templates_text(engine, pictures):
    chat = engine.chat("full")
    chat.ask(FIRST, pictures[:1], max_new_tokens=4)
    chat.ask(SECOND, max_new_tokens=4)
    text = chat._state.last.prompt.text
    assert text.startswith(f"user: <image>{FIRST}assistant:")
    assert text.endswith(f"user: {SECOND}assistant:")
    # the second turn's tokens are what the tokenizer makes of that text
    tail = engine.model.tokenizer.encode(f"user: {SECOND}assistant:", add_special_tokens=False)
    assert chat._state.last.prompt.token_ids[-len(tail) :].tolist() == tail


def test_an_answer_may_be_cut_by_the_next_question(engine, pictures):
    chat = engine.chat("vl-cache", 0.3)
    stream = chat.stream(FIRST, pictures, max_new_tokens=60)
    pieces = iter(stream)
    for _ in range(3):
        next(pieces)
    said = list(stream.result.token_ids)
    chat.ask(SECOND, max_new_tokens=4)
    assert list(pieces) == []
    begin = stream.result.prompt_tokens
    assert chat.token_ids[begin : begin + len(said)].tolist() == said


def test_a_refused_question_leaves_the_conversation_as_it_was(engine, pictures):
    chats = [engine.chat("vl-cache", 0.3) for _ in range(2)]
    for chat in chats:
        chat.ask(FIRST, pictures, max_new_tokens=NEW)
    with pytest.raises(PromptError, match="needs a conversation of keep='reusable'"):
        chats[0].ask(SECOND, pictures[:1])
    with pytest.raises(PromptError, match="is empty"):
        chats[0].ask("  ")
    with pytest.raises(PromptError, match=r"has \d+ tokens; the model has 1024 positions"):
        chats[0].ask("w0 " * 1024)
    with pytest.raises(PromptError, match="prompt has 1 <image> for 0 given"):
        chats[0].ask("what <image>")
    first, second = (chat.ask(SECOND, max_new_tokens=NEW) for chat in chats)
    assert first.token_ids == second.token_ids


def test_what_chat_refuses(engine):
    with pytest.raises(PolicyError, match="unknown keep 'all'; known: compressed, reusable"):
        engine.chat(keep="all")
    with pytest.raises(PolicyError, match="unknown policy"):
        engine.chat("lru")
    with pytest.raises(PolicyError, match="outside"):
        engine.chat(budget=0)


def test_a_first_question_is_answered_as_by_generate(engine, pictures):
    alone = engine.generate_batch([Question(FIRST, pictures, "vl-cache", 0.3, NEW)])[0]
    for keep in ("compressed", "reusable"):
        assert (
            engine.chat("vl-cache", 0.3, keep=keep).ask(FIRST, pictures, max_new_tokens=NEW).token_ids
            == alone.token_ids
        )
