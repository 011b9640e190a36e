"""Greedy tokens are chosen on the device: V logits a prompt stay there, unless something else of them is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from backend.host_device import host_backend, view
from vlkv import Engine, Question
from vlkv.errors import VlkvError
from vlkv.model import Model

SHAPE = "llama-gqa-tied"
PROMPT = "what is the total of the form"


@pytest.fixture(scope="module")
def engine(graphs_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "e"
    found, facts = host_backend(graphs_of(SHAPE), folder, "native", "in-place")
    return Engine(folder, Model.of(folder, facts, found))


@pytest.fixture
def picks(engine, monkeypatch):
    """Shapes of the logits that the device chose from."""
    device, found = engine.model.backend.device, []
    pick = device.pick

    def counted(logits, token, best):
        found.append(logits.shape)
        pick(logits, token, best)

    monkeypatch.setattr(device, "pick", counted)
    return found


@pytest.fixture
def draws(engine, monkeypatch):
    """Choices of the draws on the device, which has a kernel for them."""
    device, found = engine.model.backend.device, []
    draw = device.draw

    def counted(logits, choice, token, best):
        found.append(view(choice).view(np.float64).copy())
        draw(logits, choice, token, best)

    monkeypatch.setattr(device, "draws", True)
    monkeypatch.setattr(device, "draw", counted)
    return found


@pytest.fixture
def downloads(engine, monkeypatch):
    """Elements of each array that came to the host."""
    device, found = engine.model.backend.device, []
    download = device.download

    def counted(target, source):
        found.append(target.size)
        download(target, source)

    monkeypatch.setattr(device, "download", counted)
    return found


def test_greedy_steps_bring_two_numbers_a_prompt(engine, engine_of, picks, downloads):
    vocab = engine.manifest.text.vocab
    for policy in ("full", "h2o"):
        question = Question(PROMPT, policy=policy, max_new_tokens=9)
        want = engine_of(SHAPE).generate_batch([question])[0]
        del picks[:], downloads[:]
        got = engine.generate_batch([question])[0]
        assert got.token_ids == want.token_ids
        assert picks == [(1, vocab)] * (len(got.token_ids) - 1)
        # prefill's logits, and no others
        assert downloads.count(vocab) == 1
        assert downloads.count(1) >= 2 * len(picks)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.5, "top_k": 5, "seed": 3},
        {"logprobs": 2},
        {"frequency_penalty": 1.0},
        {"presence_penalty": -0.5},
        {"logit_bias": {7: 3.0}},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 4},
        {"suppress_tokens": (5,)},
    ],
)
def test_what_needs_more_than_the_largest_logit_gets_all(settings, engine, engine_of, picks):
    question = Question(PROMPT, policy="full", max_new_tokens=6, **settings)
    want = engine_of(SHAPE).generate_batch([question])[0]
    assert engine.generate_batch([question])[0].token_ids == want.token_ids
    assert picks == []


def test_one_that_draws_makes_the_whole_step_bring_logits(engine, engine_of, picks):
    greedy = Question(PROMPT, policy="full", max_new_tokens=5)
    drawn = Question("total", policy="full", max_new_tokens=5, temperature=1.0, seed=1)
    want = [result.token_ids for result in engine_of(SHAPE).generate_batch([greedy, drawn])]
    assert [result.token_ids for result in engine.generate_batch([greedy, drawn])] == want
    assert picks == []
    want = engine_of(SHAPE).generate_batch([greedy])[0].token_ids
    assert [result.token_ids for result in engine.generate_batch([greedy] * 3)] == [want] * 3
    assert set(picks) == {(3, engine.manifest.text.vocab)}


def test_the_scheduler_picks_too(engine, picks):
    question = Question(PROMPT, policy="full", max_new_tokens=6)
    alone = engine.generate_batch([question])[0]
    del picks[:]
    with engine.scheduler(slots=2, memory=1 << 24) as scheduler:
        tickets = [scheduler.submit(question) for _ in range(3)]
        assert {tuple(ticket.wait(120).token_ids) for ticket in tickets} == {tuple(alone.token_ids)}
    assert picks


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 3.0, "top_k": 40, "top_p": 0.6},
    ],
)
def test_drawn_steps_bring_two_numbers_a_prompt(settings, engine, engine_of, draws, picks, downloads):
    """The host's tokens for the same seed, of which the first one is drawn on the host, from prefill's logits."""
    vocab = engine.manifest.text.vocab
    for seed, policy in ((3, "full"), (4, "h2o"), (5, "full")):
        question = Question(PROMPT, policy=policy, max_new_tokens=12, seed=seed, **settings)
        want = engine_of(SHAPE).generate_batch([question])[0]
        del draws[:], downloads[:]
        got = engine.generate_batch([question])[0]
        assert got.token_ids == want.token_ids
        assert len(draws) == len(got.token_ids) - 1
        assert all(choice[0, 0] == settings["temperature"] for choice in draws)
        assert downloads.count(vocab) == 1
    assert picks == []


@pytest.mark.parametrize(
    "settings",
    [
        {"logprobs": 2},
        {"frequency_penalty": 1.0},
        {"logit_bias": {7: 3.0}},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 4},
    ],
)
def test_draws_that_need_more_of_the_logits_are_the_hosts(settings, engine, engine_of, draws):
    question = Question(PROMPT, policy="full", max_new_tokens=6, temperature=1.2, seed=8, **settings)
    want = engine_of(SHAPE).generate_batch([question])[0]
    assert engine.generate_batch([question])[0].token_ids == want.token_ids
    assert draws == []


def test_greedy_and_drawn_answers_in_one_batch(engine, engine_of, draws, picks):
    """A greedy one has temperature 0. An answer that has ended uses up no random number, and changes no other one."""
    kinds = [(5, 0.0), (9, 1.0), (7, 1.0)]
    questions = [
        Question(PROMPT, policy="full", max_new_tokens=tokens, temperature=temperature, seed=1)
        for tokens, temperature in kinds
    ]
    want = [result.token_ids for result in engine_of(SHAPE).generate_batch(questions)]
    assert [result.token_ids for result in engine.generate_batch(questions)] == want
    assert {choice[0, 0] for choice in draws} == {0.0}
    assert draws and picks == []
    with engine.scheduler(slots=2, memory=1 << 24) as scheduler:
        tickets = [scheduler.submit(question) for question in questions]
        assert [ticket.wait(120).token_ids for ticket in tickets] == want


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_damaged_logits_of_a_draw_are_told(wrong, engine, draws, monkeypatch):
    device = engine.model.backend.device
    draw = device.draw

    def damaged(logits, choice, token, best):
        view(logits)[0, 3] = wrong
        draw(logits, choice, token, best)

    monkeypatch.setattr(device, "draw", damaged)
    with pytest.raises(VlkvError, match=rf"logits hold {wrong} \(token 3\): damaged"):
        engine.generate(PROMPT, policy="full", max_new_tokens=4, temperature=1.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_damaged_logits_are_told(wrong, engine, monkeypatch):
    device = engine.model.backend.device
    pick = type(device).pick

    def damaged(logits, token, best):
        view(logits)[0, 3] = wrong
        pick(device, logits, token, best)

    monkeypatch.setattr(device, "pick", damaged)
    with pytest.raises(VlkvError, match=rf"logits hold {wrong} \(token 3\): damaged"):
        engine.generate(PROMPT, policy="full", max_new_tokens=4)
