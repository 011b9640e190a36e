"""Evicted tokens that each step recalls: equal answers on every path, what all pages give, memory, and refusals."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from vlkv import POLICIES, Policy
from vlkv.errors import PolicyError
from vlkv.generation.fork import Variant
from vlkv.generation.prefill import prefill
from vlkv.generation.question import Question
from vlkv.generation.sequence import prepare
from vlkv.ops.recall import RecallStore
from vlkv.policies.recall import Recall

PROMPT = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
SHAPE = "llama-gqa-tied"
RECALLING = [name for name, policy in POLICIES.items() if not policy.keeps_all and policy.decode == "append"]


def asked(pictures, **fields):
    return Question(PROMPT, pictures, **({"policy": "snapkv", "budget": 0.3, "max_new_tokens": 12} | fields))


def forced(engine, question):
    return np.stack([step.logits for step in engine.forced(question, [7, 11, 20, 3])])


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_with_all_pages_an_answer_is_nearly_that_of_the_full_cache(engine_of, pictures, kv_dtype):
    engine = engine_of(SHAPE, "native", "float32", kv_dtype)
    full = forced(engine, asked(pictures, policy="full", budget=None))
    dropped, recalled = (forced(engine, asked(pictures, recall=recall)) for recall in (None, 1.0))
    np.testing.assert_array_equal(dropped[0], full[0])  # the first logits come from prefill
    lost, left = (np.abs(got[1:] - full[1:]).max() for got in (dropped, recalled))
    if kv_dtype == "int8":  # the rows are copied, only the order of sums differs
        assert left <= 2e-4 * np.abs(full).max()
    # codes are off by half of 1 / 127 of a row's largest element
    assert 0 < left < lost / 10


def test_a_share_of_the_pages_is_between(engine_of, pictures):
    engine = engine_of(SHAPE)
    full = forced(engine, asked(pictures, policy="full", budget=None))
    off = []
    for share in (None, 0.2, 1.0):
        policy = replace(POLICIES["snapkv"], recall=None if share is None else Recall(share, page=4))
        off.append(np.abs(forced(engine, asked(pictures, policy=policy)) - full).mean())
    assert off[0] > off[1] > off[2]


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_answers_are_equal_on_every_path(engine_of, pictures, kv_dtype):
    engine = engine_of(SHAPE, "native", "float32", kv_dtype)
    policies = [replace(POLICIES[name], recall=Recall(0.1, page)) for name in RECALLING for page in (3, 16)]
    questions = [asked(pictures, policy=policy, recall=None) for policy in (*policies, "elastic", "h2o")]
    questions[1] = replace(questions[1], max_new_tokens=3)
    alone = [engine.generate_batch([question])[0] for question in questions]
    variants = [
        Variant(q.policy if isinstance(q.policy, Policy) else POLICIES[q.policy], 0.3) for q in questions
    ]
    together = engine.generate_batch(questions)
    forks = engine.read(asked(pictures)).answer(variants)
    with engine.scheduler(slots=3) as scheduler:
        tickets = [scheduler.submit(question) for question in questions]
        for ticket in tickets:
            for _ in ticket:
                pass
        scheduled = [ticket.result for ticket in tickets]
    for number, (result, other, fork, last) in enumerate(zip(alone, together, forks, scheduled, strict=True)):
        assert result.token_ids == other.token_ids == last.token_ids
        assert (result.recall_bytes > 0) == (number < len(policies))
        assert result.recall_bytes == other.recall_bytes == last.recall_bytes == fork.recall_bytes
        assert result.recall_bytes_read == other.recall_bytes_read == last.recall_bytes_read
        assert fork.token_ids[: len(result.token_ids)] == result.token_ids
        for kept, same in zip(result.positions, last.positions, strict=True):
            np.testing.assert_array_equal(kept, same)


def test_logits_in_a_batch_are_those_alone(engine_of, pictures):
    engine = engine_of(SHAPE)
    variants = [Variant(replace(POLICIES[name], recall=Recall(0.15, 4)), 0.25) for name in RECALLING]
    variants.insert(1, Variant(POLICIES["full"], 1.0))
    reading = engine.read(asked(pictures))
    # the prompt runs once for each observation window, in chunks of its own; from here on not again
    list(reading.forced(variants, []))
    together = np.stack([logits.copy() for logits in reading.forced(variants, [7, 11, 20])])
    for number, variant in enumerate(variants):
        one = np.stack([logits.copy() for logits in reading.forced([variant], [7, 11, 20])])
        np.testing.assert_array_equal(one[:, 0], together[:, number])


def test_every_turn_of_a_reusable_cache_recalls(engine_of, pictures):
    engine = engine_of(SHAPE)
    policy = replace(POLICIES["snapkv"], recall=Recall(0.2))
    chat = engine.chat(policy, 0.3, "reusable")
    first = chat.ask(PROMPT, pictures, max_new_tokens=12)
    assert first.token_ids == engine.generate_batch([asked(pictures, policy=policy)])[0].token_ids
    second = chat.ask("what is the name w10 w11", max_new_tokens=6)
    assert second.recall_bytes > first.recall_bytes


def test_memory_is_accounted(engine_of, pictures):
    engine = engine_of(SHAPE)
    text = engine.manifest.text
    policy = replace(POLICIES["shared-question"], recall=Recall(0.1, page=8))
    result = engine.generate_batch([asked(pictures, policy=policy)])[0]
    dropped = engine.generate_batch([asked(pictures, policy="shared-question")])[0]
    assert (
        result.cache_bytes == dropped.cache_bytes and dropped.recall_bytes == dropped.recall_bytes_read == 0
    )
    row, bounds = 2 * (text.head_dim + 4), 2 * 2 * text.head_dim
    gone = [result.prompt_tokens - kept for kept in result.kept_tokens]
    pages = [-(-tokens // 8) for tokens in gone]
    assert result.recall_bytes == text.kv_heads * (sum(gone) * row + sum(pages) * bounds)
    read = [min(tokens, 8 * -(-round(0.1 * result.prompt_tokens, 9) // 8)) for tokens in gone]
    steps = len(result.token_ids) - 1
    assert result.recall_bytes_read <= steps * text.kv_heads * (sum(read) * row + sum(pages) * bounds)
    # the last page may be shorter
    least = sum(max(0, tokens - 7) for tokens in read) * row
    assert result.recall_bytes_read >= steps * text.kv_heads * least
    with engine.scheduler(slots=2) as scheduler:
        plan = scheduler.plan
        with_it, without = (
            prepare(engine.model, asked(pictures, policy=p)) for p in (policy, "shared-question")
        )
        more = plan.lane_bytes(with_it) - plan.lane_bytes(without)
        assert plan.held_bytes(with_it)[0] - plan.held_bytes(without)[0] == more, "from prefill's end on"
        assert result.recall_bytes <= more <= 1.3 * result.recall_bytes + text.layers * text.kv_heads * bounds


def test_a_store_goes_with_its_answer(engine_of, pictures, monkeypatch):
    stores = []
    made = RecallStore.__init__

    def noted(self, *args, **kwargs):
        made(self, *args, **kwargs)
        stores.append(weakref.ref(self))

    monkeypatch.setattr(RecallStore, "__init__", noted)
    engine = engine_of(SHAPE)
    with engine.scheduler(slots=2) as scheduler:
        ticket = scheduler.submit(asked(pictures, recall=0.1))
        for _ in ticket:
            pass
        cancelled = scheduler.submit(asked(pictures, recall=0.1, max_new_tokens=400))
        next(iter(cancelled))
        cancelled.cancel()
        for _ in cancelled:
            pass
        gc.collect()
        assert len(stores) == 2 and stores[0]() is None
    gc.collect()
    assert [store() for store in stores] == [None, None]
    sequence = prepare(engine.model, asked(pictures, recall=0.1, max_new_tokens=1))
    prefill(engine.model, sequence)
    assert sequence.recall is not None
    sequence.take(sequence.logits)
    assert sequence.recall is None


def test_a_prompt_that_stays_whole_recalls_nothing(engine_of, pictures):
    engine = engine_of(SHAPE)
    results = [engine.generate_batch([asked(pictures, budget=1.0, recall=r)])[0] for r in (None, 0.5)]
    assert results[0].token_ids == results[1].token_ids
    assert results[1].recall_bytes == results[1].recall_bytes_read == 0


def test_a_pruned_prompt_recalls_what_was_evicted(engine_of, pictures):
    engine = engine_of(SHAPE)
    result = engine.generate_batch([asked(pictures, recall=0.2, prune="diverse:0.6")])[0]
    left = result.prompt_tokens - result.pruned_tokens
    text = engine.manifest.text
    row = 2 * (text.head_dim + 4)
    gone = sum(left - kept for kept in result.kept_tokens)
    assert 0 < result.recall_bytes - text.kv_heads * gone * row < text.kv_heads * gone * row


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"policy": "full", "budget": None}, "policy 'full' evicts nothing"),
        ({"policy": "elastic"}, "policy 'elastic' merges what it evicts"),
        ({"policy": "h2o"}, "policy 'h2o' evicts while decoding; recall goes with decode 'append'"),
        ({"recall": 0.0}, r"recall 0.0 is outside \(0, 1\]"),
        ({"recall": 1.5}, r"recall 1.5 is outside \(0, 1\]"),
        ({"recall": float("nan")}, r"recall nan is outside \(0, 1\]"),
        ({"recall": True}, r"recall True is outside \(0, 1\]"),
    ],
)
def test_refusals(engine_of, pictures, fields, text):
    with pytest.raises(PolicyError, match=text):
        engine_of(SHAPE).generate_batch([asked(pictures, **({"recall": 0.1} | fields))])


def test_engines_and_models_that_cannot(engine_of, pictures):
    with pytest.raises(
        PolicyError, match="recall needs an engine for ONNX Runtime on CPUs with native operators"
    ):
        engine_of(SHAPE, "functions").generate_batch([asked(pictures, recall=0.1)])
    with pytest.raises(PolicyError, match="recall needs an engine"):
        engine_of(SHAPE, "functions").read(asked(pictures)).answer(
            [Variant(replace(POLICIES["snapkv"], recall=Recall()), 0.3)]
        )
    with pytest.raises(
        PolicyError, match="recall does not fit this model, whose layers have sliding windows"
    ):
        engine_of("mistral").generate_batch([asked(pictures, recall=0.1)])


def test_a_compressed_conversation_is_refused(engine_of, pictures):
    chat = engine_of(SHAPE).chat("snapkv", 0.3)
    with pytest.raises(PolicyError, match="keep='reusable' alone"):
        chat.ask(PROMPT, pictures, recall=0.1)
    assert chat.ask(PROMPT, pictures, max_new_tokens=2).recall_bytes == 0


@pytest.mark.parametrize("page", [0, 1025, 4.0, True])
def test_a_page_of_a_wrong_size(page):
    with pytest.raises(PolicyError, match=r"page .* is not a whole number from 1 to 1024"):
        Recall(0.1, page=page)
    with pytest.raises(PolicyError, match=r"recall 0\.1 is neither None nor a Recall"):
        replace(POLICIES["snapkv"], recall=0.1)
