"""Engines whose KV cache is float16, bfloat16 or int8: sizes, closeness to float32, equal answers however asked."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from oracles import cache_rows
from vlkv import POLICIES, Question
from vlkv.backend.cache import Cache
from vlkv.errors import EngineError
from vlkv.generation.fork import Variant
from vlkv.generation.prefill import prefill
from vlkv.generation.sequence import prepare
from vlkv.scheduler.plan import divide
from vlkv_export.engine import build_engine

SHAPE = "llama-gqa-tied"
PROMPT = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
BITS = {"float16": 16, "bfloat16": 16, "int8": 8}
ROUNDING = {"float16": 2.0**-12, "bfloat16": 2.0**-9, "int8": 0.5 / 127}
"""Half a step of a row's largest number, relative to it."""

dtypes = pytest.mark.parametrize("dtype", list(BITS))


@pytest.fixture(scope="module")
def engines(engine_of):
    return {dtype: engine_of(SHAPE, "native", "float32", dtype) for dtype in ("float32", *BITS)}


def question(pictures, name="vl-cache", **fields):
    budget = None if name == "full" else 0.4
    return Question(PROMPT, pictures, policy=name, **{"budget": budget, "max_new_tokens": 16} | fields)


@dtypes
@pytest.mark.parametrize("name", ["full", "vl-cache"])
def test_the_bytes_are_those_of_the_dtype(engines, pictures, dtype, name):
    engine = engines[dtype]
    text, asked = engine.manifest.text, prepare(engine.model, question(pictures, name))
    prefill(engine.model, asked)
    cache, result = asked.give_cache(), asked.result
    row = {
        "float16": (np.float16, text.head_dim),
        "bfloat16": (np.uint16, text.head_dim),
        "int8": (np.int8, text.head_dim + 4),
    }[dtype]
    for array in (*cache.keys, *cache.values):
        assert (array.dtype, array.shape[3]) == row
    slot = 2 * text.kv_heads * (text.head_dim * BITS[dtype] // 8 + (4 if dtype == "int8" else 0))
    assert result.cache_bytes == cache.bytes == slot * sum(kept + 16 for kept in result.kept_tokens)
    assert result.cache_bytes_full == slot * text.layers * (result.prompt_tokens + 16)
    assert engine.manifest.cache_dtype == dtype


@dtypes
def test_prefill_stores_float32s_first_layer_rounded(engines, pictures, dtype):
    """The first layer's keys and values depend on no cache, so they are float32's, rounded once."""
    caches = {}
    for name in ("float32", dtype):
        asked = prepare(engines[name].model, question(pictures, "full"))
        prefill(engines[name].model, asked)
        caches[name] = asked.give_cache()
    length = int(caches[dtype].length[0, 0])
    for kind in ("keys", "values"):
        exact, stored = (getattr(caches[name], kind)[0][:, :, :length] for name in ("float32", dtype))
        np.testing.assert_array_equal(stored, cache_rows.narrow(exact, dtype))


@dtypes
@pytest.mark.parametrize("name", list(POLICIES))
def test_logits_are_near_float32s(engines, pictures, dtype, name, rng, monkeypatch):
    """Under every policy, with the same tokens fed to both, for as long as both hold the same tokens.

    Where two scores are close, the rounding decides which token is evicted; logits have no bound from there on.
    """
    tokens = rng.integers(20, 50, 12).tolist()
    steps, evicted, whole = {}, {}, Cache.overwrite

    def recorded(self, slots):
        evicted[which].append((len(steps[which]), slots.tolist()))
        whole(self, slots)

    monkeypatch.setattr(Cache, "overwrite", recorded)
    for which in ("float32", dtype):
        asked = question(pictures, name, max_new_tokens=len(tokens))
        if name != "full":
            asked = replace(asked, budget=1.0 if POLICIES[name].merge != "none" else 0.999)
        steps[which], forced = [], engines[which].forced(asked, tokens)
        evicted[which] = []
        for step in forced:
            steps[which].append(step.logits.copy())
        evicted[which].insert(0, (1, [kept.tolist() for kept in forced.result.positions or []]))
    same = next(
        (at for (at, mine), (_, theirs) in zip(*evicted.values(), strict=False) if mine != theirs), None
    )
    largest = max(float(np.abs(logits).max()) for logits in steps["float32"])
    layers = engines[dtype].manifest.text.layers
    # a layer's output is off by its keys' and its values' rounding at most, times what later layers make of it
    room = 4 * layers * ROUNDING[dtype] * largest
    differences = [
        float(np.abs(mine - theirs).max())
        for mine, theirs in zip(steps["float32"][:same], steps[dtype][:same], strict=True)
    ]
    assert 0 < max(differences) <= room


@dtypes
@pytest.mark.parametrize("name", list(POLICIES))
def test_a_batch_answers_as_each_alone(engines, pictures, dtype, name):
    engine = engines[dtype]
    asked = [question(pictures[:count], name, max_new_tokens=20 + count) for count in (0, 1, 2)]
    for one, other in zip(asked, engine.generate_batch(asked), strict=True):
        (alone,) = engine.generate_batch([one])
        assert alone.token_ids == other.token_ids
        assert alone.kept_tokens == other.kept_tokens


@dtypes
def test_a_fork_answers_as_a_batch(engines, pictures, dtype):
    engine, variants = engines[dtype], [Variant(policy, 0.4) for policy in POLICIES.values()]
    variants = [replace(v, budget=1.0) if v.policy.keeps_all else v for v in variants]
    asked = Question(PROMPT, pictures, max_new_tokens=12)
    batch = [replace(asked, policy=variant.policy, budget=variant.budget) for variant in variants]
    for result, want in zip(engine.read(asked).answer(variants), engine.generate_batch(batch), strict=True):
        assert (result.token_ids, result.kept_tokens) == (want.token_ids, want.kept_tokens)


@dtypes
def test_the_scheduler_answers_as_each_alone(engines, pictures, dtype):
    engine = engines[dtype]
    asked = [question(pictures[:count], name) for name in POLICIES for count in (0, 2)]
    with engine.scheduler(slots=3, memory=64 << 20, chunk=16) as scheduler:
        tickets = [scheduler.submit(one) for one in asked]
        found = [ticket.wait(120) for ticket in tickets]
    for one, result in zip(asked, found, strict=True):
        (want,) = engine.generate_batch([one])
        assert (result.token_ids, result.kept_tokens) == (want.token_ids, want.kept_tokens)


@dtypes
@pytest.mark.parametrize("name", ["full", "vl-cache", "elastic", "h2o"])
def test_a_chat_reads_what_earlier_turns_left(engines, pictures, dtype, name):
    answers = {}
    for which in ("float32", dtype):
        chat = engines[which].chat(policy=name, **({} if name == "full" else {"budget": 1.0}))
        turns = [chat.ask(PROMPT, pictures, max_new_tokens=6), chat.ask("what is the name", max_new_tokens=6)]
        answers[which] = [turn.prompt_tokens for turn in turns]
        assert all(turn.token_ids for turn in turns)
        again = engines[which].chat(policy=name, **({} if name == "full" else {"budget": 1.0}))
        assert again.ask(PROMPT, pictures, max_new_tokens=6).token_ids == turns[0].token_ids
        assert again.ask("what is the name", max_new_tokens=6).token_ids == turns[1].token_ids
    assert answers["float32"] == answers[dtype]


@dtypes
def test_a_later_chunk_reads_the_stored_rows(engines, dtype, rng):
    """A prompt in chunks gives the logits of the whole, because both attend to what is stored."""
    model, found = engines[dtype].model, []
    ids = rng.integers(20, 50, 40)
    embeds, positions = model.embedding.rows(ids)[None], np.arange(40)[None]
    for cuts in ((0, 40), (0, 7, 8, 39, 40)):
        cache = Cache.empty(model.manifest.text, 40, model.backend.store)
        for begin, end in pairwise(cuts):
            part = (np.ascontiguousarray(array[:, begin:end]) for array in (embeds, positions))
            logits, _ = model.backend.extend(*part, cache, np.zeros((1, 0), np.int64), end == 40)
        found.append(logits)
        assert cache.length.tolist() == [[40]] * model.manifest.text.layers
    assert np.abs(found[0] - found[1]).max() <= 2 * ROUNDING[dtype] * np.abs(found[0]).max()


@pytest.mark.parametrize("dtype", ["float32", *BITS])
def test_a_plan_holds_more_tokens_of_fewer_bits(engines, dtype):
    text = engines[dtype].manifest.text
    plan = divide(text, text.hidden, memory=1 << 20, capacity=8, prompt_tokens=8, dtype=dtype)
    item, extra = {"float32": (4, 0), "float16": (2, 0), "bfloat16": (2, 0), "int8": (1, 4)}[dtype]
    assert plan.token_bytes == 2 * text.kv_heads * (text.head_dim * item + extra)
    with engines[dtype].scheduler(slots=2, memory=1 << 20) as scheduler:
        assert scheduler.plan.token_bytes == plan.token_bytes


def test_what_does_not_go_together(graphs_of, tmp_path):
    graphs, target = graphs_of(SHAPE), tmp_path / "e"
    for arguments, text in (
        (
            {"operators": "functions", "kv_dtype": "bfloat16"},
            "--kv-dtype bfloat16 goes with --operators native; --operators functions has a cache in float32",
        ),
        (
            {"backend": "tensorrt-rtx", "kv_dtype": "int8"},
            "--kv-dtype int8 goes with --backend onnxruntime; for tensorrt-rtx use --dtype",
        ),
        ({"kv_dtype": "int4"}, "unknown KV dtype 'int4'; known: float32, float16, bfloat16, int8"),
    ):
        with pytest.raises(EngineError, match=re.escape(text)):
            build_engine(graphs, target, **arguments)
        assert not target.exists()


def test_heads_that_the_graph_keeps_for_itself_are_refused(graphs_of, tmp_path):
    folder = tmp_path / "graphs"
    folder.mkdir()
    for path in graphs_of(SHAPE).iterdir():
        (folder / path.name).symlink_to(path)
    facts = json.loads((folder / "manifest.json").read_text())
    facts["text"]["head_dim"] = 12
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(EngineError, match="needs heads of a multiple of 8 elements, this model's have 12"):
        build_engine(folder, tmp_path / "e", kv_dtype="bfloat16")
    assert not (tmp_path / "e").exists()


@dtypes
def test_a_window_ends_what_the_engine_takes(engine_of, dtype):
    """Attention over these caches knows no window, so prompt and answer end inside the smallest one."""
    exact, narrow = (
        engine_of("mistral", "native", "float32", kind).manifest.text for kind in ("float32", dtype)
    )
    windows = [window for window in exact.layer_windows if window]
    assert not narrow.layer_windows
    assert narrow.max_positions == min([exact.max_positions, *windows])
