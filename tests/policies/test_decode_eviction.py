"""Eviction while decoding on whole checkpoints: the evicted tokens of each step, and logits of a run without them."""

from __future__ import annotations

import gc
import shutil
import tracemalloc
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from models import prompts, tiny
from models.evicting import Evicting
from oracles import decoding as oracle
from vlkv import POLICIES, Engine, Question
from vlkv.backend.onnxruntime import OnnxRuntimeSteps

STEPS = 40
# see test_kept_positions.py
MARGIN = 2.0**-24 * 2500**0.5 * 30
CASES = {
    "elastic": (POLICIES["elastic"], 0.3),
    # the truncation point is inside the prompt's own tokens, and the cache grows every other step
    "elastic near": (replace(POLICIES["elastic"], distance=5), 0.5),
    "fixed point per head": (replace(POLICIES["snapkv"], window=4, decode="fixed_point", distance=9), 0.4),
    "h2o": (POLICIES["h2o"], 0.3),
    "h2o per head": (replace(POLICIES["h2o"], per_head=True, sinks=2), 0.4),
    "streaming-llm": (POLICIES["streaming-llm"], 0.2),
    "streaming-llm of two": (POLICIES["streaming-llm"], 0.05),
}


class Lists:
    """The oracle's lists of a prompt, per layer and head or shared."""

    def __init__(self, policy, budget, result):
        self.policy = policy
        heads = range(len(result.positions[0])) if policy.per_head else [0]
        self.layers = []
        for kept, score in zip(result.positions, result.scores, strict=True):
            lists = []
            for head in heads:
                entries = kept[head].tolist()
                if policy.decode == "lowest":
                    rated = score[head] if policy.per_head else score.sum(axis=0, dtype=np.float64)
                    lists.append(oracle.Lowest(entries, rated[entries].astype(np.float64)))
                elif policy.decode == "sliding":
                    lists.append(oracle.Sliding(entries))
                else:
                    lists.append(oracle.FixedPoint(entries, budget, result.prompt_tokens, policy.distance))
            self.layers.append(lists)

    def step(self, position, reference, eviction):
        """Appends to every list. Removes from the reference what the engine evicts where scores are equal."""
        for layer, lists in enumerate(self.layers):
            gone = []
            for head, entries in enumerate(lists):
                if self.policy.decode != "lowest":
                    gone.append(entries.step(position))
                    continue
                seen = reference.attention[layer]
                rows = [head] if self.policy.per_head else range(len(seen))
                weights = dict.fromkeys(reference.positions[layer][head], 0.0)
                for row in rows:
                    for key, weight in zip(reference.positions[layer][row], seen[row], strict=True):
                        weights[key] += weight
                order = [entry for entry in entries.step(position, weights) if entry >= self.policy.sinks]
                gone.append(self._drop(entries, order, set(eviction.positions[layer][head].tolist())))
            if gone[0] is not None:
                reference.drop(
                    layer, gone if self.policy.per_head else gone * len(reference.positions[layer])
                )

    @staticmethod
    def _drop(entries, order, held):
        if not order:
            return None
        (mine,) = set(entries.entries) - held
        assert mine in order
        low = entries.scores[order[0]]
        assert entries.scores[mine] == pytest.approx(low, rel=MARGIN)
        entries.drop(mine)
        return mine


@pytest.mark.parametrize(
    ("shape", "operators"), [("mistral", "native"), ("mistral", "functions"), ("llama", "native")]
)
@pytest.mark.parametrize("name", CASES)
def test_step_by_step(shape, operators, name, engine_of, reference_of, pictures, prefilled, tolerance, rng):
    policy, budget = CASES[name]
    engine, reference = engine_of(shape, operators), reference_of(shape, "float64")
    asked = prompts.question("text between", pictures, policy=policy, budget=budget, scores=True)
    fields = {"policy": policy, "budget": budget, "scores": True, "max_new_tokens": STEPS}
    got = prefilled(engine, asked.prompt, asked.images, **fields)
    merge = policy.merge != "none"
    run = Evicting(reference, prompts.inputs(engine, reference, asked), got.result.positions, merge)
    lists = Lists(policy, budget, got.result)
    decoder = got.decoder()
    arrays = [*got.cache.keys, *got.cache.values]
    np.testing.assert_allclose(got.logits, run.logits, rtol=0, atol=tolerance(run.logits))
    for token in rng.integers(len(tiny.SPECIAL), tiny.VOCAB, STEPS):
        position = int(decoder.positions[0])
        logits = decoder.step(np.array([token]), np.array([True]))[0]
        want = run.step(token)
        np.testing.assert_allclose(logits, want, rtol=0, atol=tolerance(want))
        lists.step(position, run, got.eviction)
        for layer, held in enumerate(got.eviction.positions):
            valid = int(got.cache.length[layer, 0])
            for head, theirs in enumerate(run.positions[layer]):
                assert sorted(held[head, :valid].tolist()) == theirs
                assert (held[head, valid:] == -1).all()
    # it evicted, and wrote into the existing arrays
    assert int(got.cache.length.max()) < max(got.result.kept_tokens) + STEPS
    assert all(
        mine is theirs for mine, theirs in zip([*got.cache.keys, *got.cache.values], arrays, strict=True)
    )


@pytest.mark.parametrize("operators", ["native", "functions"])
def test_mixed_policies_in_a_batch_equal_each_alone(operators, engine_of, pictures):
    engine = engine_of("mistral", operators)
    names = ["elastic", "vl-cache", "h2o", "streaming-llm", "full", "snapkv", "h2o", "pyramidkv"]
    questions = [
        Question(
            prompts.LONG[: 40 + 20 * number],
            pictures[: number % 3],
            name,
            None if name == "full" else 0.1 + 0.05 * number,
            max_new_tokens=20 + 7 * number,
        )
        for number, name in enumerate(names)
    ]
    together = engine.generate_batch(questions)
    lengths = [len(result.token_ids) for result in together]
    assert len(set(lengths)) > 4
    assert max(lengths) > 40
    for question, result in zip(questions, together, strict=True):
        (alone,) = engine.generate_batch([question])
        assert result.token_ids == alone.token_ids
        assert result.kept_tokens == alone.kept_tokens


@pytest.fixture(scope="module")
def long_engine(built_of, tmp_path_factory):
    """Returns the engine `llama` with enough positions for a long answer. Its RoPE has no limit."""
    folder = tmp_path_factory.mktemp("long") / "engine"
    shutil.copytree(built_of("llama"), folder)
    path = folder / "manifest.json"
    values = msgspec.json.decode(path.read_bytes())
    values["text"]["max_positions"] = 2100
    path.write_bytes(msgspec.json.encode(values))
    return Engine.load(folder, threads=1)


@pytest.mark.parametrize("name", ["elastic", "h2o", "streaming-llm"])
def test_memory_over_two_thousand_tokens(name, long_engine, pictures, prefilled):
    engine, budget, new = long_engine, 0.2, 2000
    text = engine.manifest.text
    got = prefilled(engine, prompts.LONG, pictures, policy=name, budget=budget, max_new_tokens=new)
    grown = budget * new + 1 if name == "elastic" else 0
    for layer, count in enumerate(got.result.kept_tokens):
        assert got.cache.capacity(layer) <= count + 1 + grown
        assert got.eviction.positions[layer].shape[1] == got.cache.capacity(layer)
    slots = sum(got.cache.capacity(layer) for layer in range(text.layers))
    assert got.result.cache_bytes == got.cache.bytes == slots * 2 * text.kv_heads * text.head_dim * 4
    decoder = got.decoder()
    active, arrays = np.array([True]), [*got.cache.keys, *got.cache.values]
    gc.collect()
    tracemalloc.start()
    for step in range(new):
        if step == 100:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
        logits = decoder.step(np.array([step % 40 + 10]), active)
        assert np.isfinite(logits).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # a step's temporaries are gone after it, and no larger than a layer's scores
    assert peak - before < 64 << 10
    assert all(
        mine is theirs for mine, theirs in zip([*got.cache.keys, *got.cache.values], arrays, strict=True)
    )
    for layer, count in enumerate(got.result.kept_tokens):
        assert count <= got.cache.length[layer, 0] <= count + grown
        held = got.eviction.positions[layer][0]
        held = held[held >= 0]
        assert len(set(held.tolist())) == len(held) == got.cache.length[layer, 0]
        assert held.max() == got.result.prompt_tokens + new - 1


def test_a_batch_that_evicts_is_as_large_as_its_largest_budget(engine_of, pictures):
    engine = engine_of("llama")
    text = engine.manifest.text
    questions = [
        Question(prompts.LONG, pictures[:1], name, 0.2, max_new_tokens=300)
        for name in ("h2o", "streaming-llm")
    ]
    results = engine.generate_batch(questions)
    slots = sum(max(result.kept_tokens[layer] for result in results) + 1 for layer in range(text.layers))
    assert results[0].cache_bytes == slots * 2 * text.kv_heads * text.head_dim * 4


def test_only_what_watches_is_observed(engine_of, pictures, monkeypatch):
    engine = engine_of("mistral")
    watched = []
    steps = OnnxRuntimeSteps
    original = steps._watcher
    monkeypatch.setattr(steps, "_watcher", lambda self: (watched.append(1), original(self))[1])
    for name in ("full", "vl-cache", "elastic", "streaming-llm"):
        engine.generate(prompts.LONG, pictures, policy=name, max_new_tokens=8)
    assert not watched
    engine.generate(prompts.LONG, pictures, policy="h2o", max_new_tokens=8)
    # bound once, however many steps
    assert watched == [1]
