"""Layers with a sliding window: answers go past it as in transformers, under every policy, and no layer holds more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models import families, tiny
from models.evicting import Evicting
from oracles import policies as oracle
from vlkv import POLICIES, Engine, Question
from vlkv.errors import EngineError, PolicyError, PromptError
from vlkv.generation.fork import Variant
from vlkv.scheduler.plan import divide
from vlkv.storage.manifest import decode, encode
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

STEPS = 30
WINDOWS = {"llava-clip-mistral-window": (16, 16), "next-siglip-qwen2-window": (0, 40, 40)}
every = pytest.mark.parametrize("name", WINDOWS)
LONG = " ".join(f"w{number}" for number in range(17))
TEXTS = {
    "short": ("what is the", []),
    "to the window": ("what is the <image> total w1 w2", ["dot"]),
    "long": (f"{LONG} <image> what is the total name date {LONG}", ["odd"]),
}
CASES = {
    "full": (POLICIES["full"], 1.0),
    "vl-cache": (POLICIES["vl-cache"], 0.3),
    "vl-cache, most": (POLICIES["vl-cache"], 0.9),
    "elastic": (POLICIES["elastic"], 0.2),
    "elastic, near": (replace(POLICIES["elastic"], distance=3), 0.5),
    "h2o": (POLICIES["h2o"], 0.2),
    "h2o, per head": (replace(POLICIES["h2o"], per_head=True, sinks=2), 0.6),
    "snapkv": (replace(POLICIES["snapkv"], window=5), 0.3),
    "pyramidkv": (replace(POLICIES["pyramidkv"], window=4), 0.2),
    "streaming-llm": (POLICIES["streaming-llm"], 0.3),
    "streaming-llm, all": (POLICIES["streaming-llm"], 1.0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("windows")

    @cache
    def make(name, operators="native"):
        if not (base / f"{name}.graphs").exists():
            export_checkpoint(families.build(name, base / name), base / f"{name}.graphs")
        build_engine(base / f"{name}.graphs", base / f"{name}.{operators}", operators=operators)
        return Engine.load(base / f"{name}.{operators}", threads=1, verify=False)

    return make


@pytest.fixture(scope="module")
def reference_of(made, tmp_path_factory):
    @cache
    def make(name, double=True):
        found = families.Reference(name, families.build(name, tmp_path_factory.mktemp("checkpoint") / name))
        return SimpleNamespace(model=found.model.double() if double else found.model, inputs=found.inputs)

    return make


def given(reference, text, pictures, double=True):
    found = reference.inputs(text, pictures)
    if double and "pixel_values" in found:
        found["pixel_values"] = found["pixel_values"].double()
    return {"input_ids": found.pop("input_ids"), **found}


def asked(text, **fields):
    words, names = TEXTS[text]
    return Question(words, [families.picture(name) for name in names], raw=True, **fields)


@every
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("case", CASES)
def test_step_by_step(name, text, case, made, reference_of, prefilled, tolerance, rng):
    (policy, budget), engine, reference = CASES[case], made(name), reference_of(name)
    words, names = TEXTS[text]
    pictures = [families.picture(each) for each in names]
    fields = {"policy": policy, "budget": budget, "max_new_tokens": STEPS, "raw": True, "scores": True}
    got = prefilled(engine, words, pictures, **fields)
    length, result, heads = got.result.prompt_tokens, got.result, engine.manifest.text.kv_heads
    windows = [window if length + STEPS > window else 0 for window in WINDOWS[name]]
    assert any(windows) or text == "short"
    kept = result.positions or [np.tile(np.arange(length), (heads, 1))] * len(windows)
    for layer, window in enumerate(windows):
        if window:
            assert kept[layer].shape[1] <= window - 1 and (kept[layer] == kept[layer][0]).all()
            assert kept[layer].min() > length - window and got.cache.capacity(layer) <= window
    if policy.keeps_all:
        assert result.kept_tokens == [min(length, window - 1) if window else length for window in windows]
    begin = [max(0, length - window + 1) if window else 0 for window in windows]
    inputs = given(reference, words, pictures)
    run = Evicting(reference, inputs, kept, policy.merge != "none", begin)
    np.testing.assert_allclose(got.logits, run.logits, rtol=0, atol=tolerance(run.logits))
    decoder = got.decoder()
    for token in rng.integers(len(tiny.SPECIAL), tiny.VOCAB, STEPS - 1):
        position = int(decoder.positions[0])
        logits = decoder.step(np.array([token]), np.array([True]))[0]
        want = run.step(token)
        np.testing.assert_allclose(logits, want, rtol=0, atol=tolerance(want))
        for layer, window in enumerate(windows):
            theirs = run.positions[layer]
            if window:
                assert all(min(head) > position - window for head in theirs)
            leaves = bool(window) and min(theirs[0]) == position + 1 - window
            if got.eviction is None:
                continue
            valid = int(got.cache.length[layer, 0])
            held = got.eviction.positions[layer]
            assert (held[:, valid:] == -1).all()
            gone = [set(head) - set(mine[:valid].tolist()) for head, mine in zip(theirs, held, strict=True)]
            assert len({len(one) for one in gone}) == 1 and len(gone[0]) <= 1
            if leaves:
                assert gone == [{position + 1 - window}] * len(gone)
            if gone[0]:
                run.drop(layer, [one.pop() for one in gone])
            if window and policy.decode == "append":
                assert leaves == (valid < len(theirs[0]) + leaves) and valid <= window - 1


@every
def test_scores_are_those_of_the_window(name, made, reference_of, prefilled):
    """Rows past the window attend to their last tokens alone; so do sums and sparsity."""
    engine, reference = made(name), reference_of(name)
    words, names = TEXTS["long"]
    pictures = [families.picture(each) for each in names]
    inputs = given(reference, words, pictures)
    reference.model.set_attn_implementation("eager")
    out = reference.model(**inputs, output_attentions=True)
    attention = np.stack([layer[0].detach().numpy() for layer in out.attentions])
    length = attention.shape[-1]
    for case in ("h2o", "vl-cache"):
        policy, budget = CASES[case]
        for chunk in (1024, 7):
            fields = {"policy": policy, "budget": budget, "scores": True, "raw": True}
            result = prefilled(engine, words, pictures, chunk=chunk, **fields).result
            first = 0 if case == "h2o" else result.image_positions[-1] + 1
            rows = range(first, length)
            want = oracle.column_sums(attention, rows, engine.manifest.text.kv_heads)
            np.testing.assert_allclose(np.stack(result.scores), want, rtol=1e-3, atol=1e-4)
            for layer, window in enumerate(WINDOWS[name]):
                seen = attention[layer][:, list(rows)]
                pairs = sum(min(row + 1, window or length) for row in rows) * len(seen)
                below = (seen > 0) & (seen < 0.01 * seen.max(axis=-1, keepdims=True))
                assert result.sparsity[layer] == pytest.approx(below.sum() / pairs, abs=2e-3)


@every
@pytest.mark.parametrize("case", ["full", "vl-cache", "h2o", "streaming-llm", "elastic"])
def test_batches_forks_and_the_scheduler_answer_alike(name, case, made):
    engine, (policy, budget) = made(name), CASES[case]
    fields = {"policy": policy, "budget": budget, "max_new_tokens": STEPS}
    questions = [asked(text, **fields) for text in ("long", "short", "to the window")]
    alone = [engine.generate_batch([question])[0] for question in questions]
    tokens = [result.token_ids for result in alone]
    assert [result.token_ids for result in engine.generate_batch(questions)] == tokens
    forked = engine.read(questions[0]).answer([Variant(policy, budget), Variant(POLICIES["full"], 1.0)])
    assert forked[0].token_ids == tokens[0]
    text = engine.manifest.text
    with engine.scheduler(slots=2, memory=1 << 21) as scheduler:
        results = [ticket.wait() for ticket in [scheduler.submit(question) for question in questions]]
    assert [result.token_ids for result in results] == tokens
    slot = text.kv_heads * text.head_dim * 2 * 4
    for one, other in zip(alone, results, strict=True):
        assert (
            one.cache_bytes
            == other.cache_bytes
            <= slot * sum(min(one.prompt_tokens + STEPS, window or 1 << 20) for window in WINDOWS[name])
        )
        assert one.kept_tokens == other.kept_tokens


@every
@pytest.mark.parametrize("keep", ["compressed", "reusable"])
def test_a_conversation_goes_past_the_window(name, keep, made, reference_of):
    engine, reference = made(name), reference_of(name, double=False)
    chat = engine.chat("full", keep=keep)
    for text in (f"what is the total {LONG}", "name w3 w4 w5", f"date {LONG} {LONG}"):
        before = len(chat.token_ids)
        result = chat.ask(text, max_new_tokens=9)
        ids = chat.token_ids[: result.prompt_tokens]
        assert before < result.prompt_tokens
        given_ids = torch.from_numpy(ids[None].copy())
        inputs = {"input_ids": given_ids, "attention_mask": torch.ones_like(given_ids)}
        out = reference.model.generate(**inputs, max_new_tokens=9, do_sample=False, pad_token_id=3)
        assert out[0, len(ids) :].tolist() == result.token_ids
    held = zip(WINDOWS[name], result.kept_tokens, strict=True)
    assert all(count <= (window - 1 if window else result.prompt_tokens) for window, count in held)


@every
@pytest.mark.parametrize("case", ["vl-cache", "h2o", "h2o, per head", "streaming-llm", "elastic"])
def test_a_compressed_conversation_stays_inside(name, case, made):
    engine, (policy, budget) = made(name), CASES[case]
    chat = engine.chat(policy, budget)
    for text in (f"what is the total {LONG}", "name w3 w4 w5", f"date {LONG}"):
        result = chat.ask(text, max_new_tokens=9)
        for window, positions in zip(WINDOWS[name], result.positions, strict=True):
            if window:
                assert positions.shape[1] < window and positions.min() > result.prompt_tokens - window


def test_a_plan_counts_windows(made):
    text = made("next-siglip-qwen2-window").manifest.text
    assert text.layer_windows == (0, 40, 40)
    plan = divide(text, text.hidden, memory=1 << 21)
    assert plan.capacity[1:] == (40, 40) and plan.capacity[0] == text.max_positions
    token = plan.token_bytes
    small = divide(text, text.hidden, memory=plan.page_bytes + token * (80 + 300))
    assert small.capacity == (300, 40, 40)


def test_without_native_operators_answers_end_inside(made):
    engine = made("llava-clip-mistral-window", "functions")
    assert engine.manifest.text.max_positions == 16 and not engine.manifest.text.layer_windows
    result = engine.generate("what is the", raw=True, max_new_tokens=40, policy="full")
    native = made("llava-clip-mistral-window").generate(
        "what is the", raw=True, max_new_tokens=40, policy="full"
    )
    assert len(result.token_ids) <= 16 < len(native.token_ids)
    assert native.token_ids[: len(result.token_ids)] == result.token_ids
    with pytest.raises(PromptError, match="16 positions"):
        engine.generate(LONG, raw=True)


def test_attention_is_given_inside_the_window_only(made):
    engine = made("llava-clip-mistral-window")
    with pytest.raises(PolicyError, match="sliding window"):
        engine.forced(asked("long", policy="full"), [7, 8], attention=True)


def test_a_manifest_of_other_windows_is_refused(made):
    manifest = made("llava-clip-mistral-window").manifest
    for wrong in (b"[16, 1]", b"[16]", b"[16, 16, 0]", b"[-1, 16]"):
        data = encode(manifest)
        found = data.replace(b'"layer_windows": [\n      16,\n      16\n    ]', b'"layer_windows": ' + wrong)
        assert found != data
        with pytest.raises(EngineError, match="layer_windows"):
            decode(found)
