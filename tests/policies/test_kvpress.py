"""Compares SnapKV, PyramidKV and StreamingLLM with kvpress on the same checkpoint and prompt, in float64.

kvpress 0.5.5 asks for transformers 5.2 and for packages that these three presses do not need. It is therefore installed
without its dependencies (`make .venv/tested`), and its package initialiser, which imports them, is skipped. Its hook
wants an argument that transformers 5.23 no longer gives, so the tests call the press's `compress` directly.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch

from models import prompts
from vlkv import POLICIES

MARGIN = 2.0**-24 * 2500**0.5 * 30
KEEP = 30


@pytest.fixture(scope="module")
def press_of():
    """Returns press classes by module and name."""
    spec = find_spec("kvpress")
    if spec is None:
        pytest.skip("kvpress is not installed; make .venv/tested does it")
    package = ModuleType("kvpress")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["kvpress"] = package

    def make(module, name, **fields):
        return getattr(importlib.import_module(f"kvpress.presses.{module}"), name)(**fields)

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "kvpress"]:
        del sys.modules[name]


def pressed(reference, inputs, press):
    """Returns per layer the positions `[Hkv, count]` that a press keeps, and the scores `[Hkv, T]` it ranks by."""
    kept, scores = [], []

    def hook(module, _, kwargs, output):
        keys = kwargs["past_key_values"].layers[module.layer_idx].keys
        places = torch.arange(keys.shape[2])[None, None, :, None].expand_as(keys).to(keys.dtype)
        arguments = module, kwargs["hidden_states"], keys, places, None, kwargs
        _, left = press.compress(*arguments)
        kept.append(np.sort(left[0, :, :, 0].numpy().astype(int), axis=1))
        scores.append(press.score(*arguments)[0].numpy())

    layers = reference.model.model.language_model.layers
    hooks = [layer.self_attn.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            reference.model(**inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return kept, scores


@pytest.fixture
def both_of(engine_of, reference_of, pictures):
    """Returns what vlkv and a press keep of a prompt with two pictures. The press is made from the prompt's length."""

    def run(policy, make):
        engine, reference = engine_of("mistral"), reference_of("mistral", "float64")
        length = len(engine.prompt(prompts.question("text between", pictures)).token_ids)
        asked = prompts.question(
            "text between", pictures, policy=policy, budget=KEEP / length, max_new_tokens=1
        )
        (result,) = engine.generate_batch([asked])
        theirs, scores = pressed(reference, prompts.inputs(engine, reference, asked), make(length))
        return result, theirs, scores

    return run


def assert_same(result, theirs, scores):
    for mine, kept, score in zip(result.positions, theirs, scores, strict=True):
        assert mine.shape == kept.shape
        for head, other, rating in zip(mine.tolist(), kept.tolist(), score, strict=True):
            gone, extra = sorted(set(other) - set(head)), sorted(set(head) - set(other))
            assert sorted(rating[gone]) == pytest.approx(sorted(rating[extra]), rel=MARGIN)


# kvpress truncates the share to a whole number: half a token more is this number
def ratio(length):
    return 1 - (KEEP + 0.5) / length


@pytest.mark.parametrize(("window", "kernel"), [(4, 5), (9, 3), (1, 7)])
def test_snapkv_pooled_by_the_mean(both_of, press_of, window, kernel):
    policy = replace(POLICIES["snapkv"], window=window, pooling="mean", kernel=kernel)
    fields = {"window_size": window, "kernel_size": kernel}
    result, theirs, scores = both_of(
        policy, lambda n: press_of("snapkv_press", "SnapKVPress", compression_ratio=ratio(n), **fields)
    )
    assert result.kept_tokens == [KEEP] * 3
    assert_same(result, theirs, scores)
    # heads differ, so the comparison is not trivial
    assert any((kept[0] != kept[1]).any() for kept in theirs)


def test_snapkv_as_published_pools_by_the_largest(both_of, press_of):
    policy = replace(POLICIES["snapkv"], window=4)
    fields = {"window_size": 4, "kernel_size": 7}
    result, theirs, _ = both_of(
        policy, lambda n: press_of("snapkv_press", "SnapKVPress", compression_ratio=ratio(n), **fields)
    )
    assert any((a != b).any() for a, b in zip(result.positions, theirs, strict=True))


def test_pyramidkv(both_of, press_of):
    policy = replace(POLICIES["pyramidkv"], window=4, pooling="mean", kernel=5, beta=5.0)
    fields = {"window_size": 4, "kernel_size": 5, "beta": 5}
    result, theirs, scores = both_of(
        policy,
        lambda n: press_of("pyramidkv_press", "PyramidKVPress", compression_ratio=1 - KEEP / n, **fields),
    )
    assert result.kept_tokens == [54, 30, 6] == [kept.shape[1] for kept in theirs]
    assert_same(result, theirs, scores)


def test_a_pyramid_narrower_than_the_window(both_of, press_of):
    """If the last layer's share is under the window, kvpress gives up the pyramid. vlkv narrows to the window."""
    policy = replace(POLICIES["pyramidkv"], window=4, pooling="mean", kernel=5)
    fields = {"window_size": 4, "kernel_size": 5, "beta": 20}
    result, theirs, _ = both_of(
        policy,
        lambda n: press_of("pyramidkv_press", "PyramidKVPress", compression_ratio=1 - KEEP / n, **fields),
    )
    assert [kept.shape[1] for kept in theirs] == [KEEP] * 3
    assert result.kept_tokens[2] == 4
    assert result.kept_tokens[0] > result.kept_tokens[1] > 4
    assert sum(result.kept_tokens) == 3 * KEEP


def test_streaming_llm(both_of, press_of):
    result, theirs, _ = both_of(
        POLICIES["streaming-llm"],
        lambda n: press_of("streaming_llm_press", "StreamingLLMPress", compression_ratio=ratio(n), n_sink=4),
    )
    for mine, kept in zip(result.positions, theirs, strict=True):
        np.testing.assert_array_equal(mine, kept)
