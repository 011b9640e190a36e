"""`auto` takes a policy by the prompt, once, wherever a policy has a name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlkv import POLICIES, Policy, Question
from vlkv.bench.settings import Budget
from vlkv.bench.timing import EngineArm
from vlkv.generation.fork import Variant
from vlkv.policies.auto import SHORT_TEXT
from vlkv.policies.builtin import AUTO, DEFAULT_POLICY, resolve
from vlkv.policies.recall import Recall

LONG = "what is the total " * 80


@pytest.fixture(params=["native", "functions"])
def engine(request, engine_of):
    return engine_of("llama-gqa-tied", request.param)


def test_one_question(engine_of, pictures):
    engine = engine_of("llama-gqa-tied")
    for asked, want in (
        (Question("what is the total", raw=True), "vl-cache"),
        (Question(LONG, raw=True), DEFAULT_POLICY),
        (Question("what is the total", pictures), DEFAULT_POLICY),
        (Question(LONG, pictures), DEFAULT_POLICY),
    ):
        asked = replace(asked, policy="auto", budget=0.3, max_new_tokens=4)
        (found,) = engine.generate_batch([asked])
        (named,) = engine.generate_batch([replace(asked, policy=want)])
        assert (found.policy, found.token_ids, found.kept_tokens) == (
            want,
            named.token_ids,
            named.kept_tokens,
        )
        (forked,) = engine.read(asked).answer([Variant(resolve("auto"), 0.3)])
        assert (forked.policy, forked.token_ids) == (want, named.token_ids)
        with engine.scheduler() as scheduler:
            assert scheduler.submit(asked).wait(60).policy == want


def test_the_border_between_texts(engine_of):
    engine = engine_of("llama-gqa-tied")
    words = "what " * (SHORT_TEXT + 9)
    tokens = len(engine.prompt(Question(words, raw=True)).token_ids)
    assert tokens > SHORT_TEXT, "a word is a token here"
    cut = " ".join(words.split()[: SHORT_TEXT + 9 - (tokens - SHORT_TEXT)])
    for text, length, want in (
        (cut, SHORT_TEXT, "vl-cache"),
        (cut + " what", SHORT_TEXT + 1, DEFAULT_POLICY),
    ):
        found = engine.generate(text, raw=True, policy="auto", budget=0.5, max_new_tokens=1)
        assert (found.prompt_tokens, found.policy) == (length, want)


def test_a_conversation_about_a_picture(engine, pictures):
    """An engine whose graphs add rows cannot run picture-once, and takes the default."""
    want = "picture-once" if engine.manifest.operators == "native" else DEFAULT_POLICY
    chats = [engine.chat(policy, 0.3) for policy in ("auto", want)]
    for prompt, images in (("what is the total", pictures), ("what is the date", ())):
        found, named = (chat.ask(prompt, images, max_new_tokens=4) for chat in chats)
        assert found.policy == named.policy == want, "later turns go on under the policy of the first"
        assert (found.token_ids, found.kept_tokens) == (named.token_ids, named.kept_tokens)
    whole = engine.chat("auto", 0.3, "reusable").ask("what is the total", pictures, max_new_tokens=2)
    assert whole.policy == DEFAULT_POLICY, "the full cache answers later questions"


def test_a_benchmark_takes_it_for_each_prompt(engine_of, pictures):
    engine = engine_of("llama-gqa-tied")
    arm = EngineArm(engine, Budget(0.5), "auto")
    for asked, want in (
        (Question("what", raw=True), "vl-cache"),
        (Question("what", pictures), DEFAULT_POLICY),
    ):
        one = type("Asked", (), {"prompt": engine.prompt(asked), "pictures": ()})
        assert arm.request(one, 4).policy == POLICIES[want]


def test_recall_stays(engine_of, pictures):
    engine = engine_of("llama-gqa-tied")
    found = engine.generate("what", pictures, policy="auto", budget=0.2, recall=0.2, max_new_tokens=4)
    assert (found.policy, found.recall_bytes > 0) == (DEFAULT_POLICY, True)
    assert replace(AUTO, recall=Recall(0.2)) != AUTO


def test_a_policy_of_a_users_own_by_that_name_is_left_alone(engine_of, pictures):
    mine = Policy("auto", rows="last", window=4)
    found = engine_of("llama-gqa-tied").generate("what", pictures, policy=mine, budget=0.3, max_new_tokens=1)
    named = engine_of("llama-gqa-tied").generate(
        "what", pictures, policy=replace(mine, name="mine"), budget=0.3, max_new_tokens=1
    )
    assert (found.policy, found.kept_tokens) == ("auto", named.kept_tokens)
    assert [kept.tolist() for kept in found.positions] == [kept.tolist() for kept in named.positions]
