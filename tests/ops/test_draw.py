"""Draw: the definition against the host's sampler, and the emulated kernel against both."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oracles.draw import allowed, drawn
from vlkv.backend.kernels import Library
from vlkv.generation.sampling import Sampler, Sampling, kept_tokens


@pytest.fixture(scope="module")
def draw(emulated):
    """Returns the kernel: logits `[B,V]` and settings `[B,4]` to tokens and largest logits `[B]`."""
    library = Library(emulated)

    def run(logits, settings):
        logits, settings = (
            np.ascontiguousarray(logits, np.float32),
            np.ascontiguousarray(settings, np.float64),
        )
        batch, vocab = logits.shape
        assert settings.shape == (batch, 4)
        token, best = np.full(batch, -7, np.int32), np.zeros(batch, np.float32)
        library.draw(batch, vocab, *(array.ctypes.data for array in (logits, settings, token, best)), 0)
        return token, best

    return run


def cases(rng, count):
    """Draws logits of one token, with equal ones among them, and how to sample."""
    for index in range(count):
        vocab = int(rng.integers(1, 400))
        logits = rng.normal(0, rng.choice([0.3, 3, 20]), vocab).astype(np.float32)
        if index % 3 == 0:
            logits = np.round(logits)
        if index % 4 == 0:
            logits[rng.random(vocab) < 0.3] = -np.inf
            logits[0] = 0
        seed, top_k = int(rng.integers(1 << 60)), int(rng.choice([0, 1, 2, vocab // 2, vocab, vocab + 5]))
        top_p = float(rng.choice([1.0, rng.uniform(0.01, 1), rng.uniform(0.9, 1)]))
        yield logits, Sampling(temperature=float(rng.uniform(0.1, 3)), top_k=top_k, top_p=top_p, seed=seed)


def first_uniform(sampling):
    return np.random.Generator(np.random.Philox(sampling.seed)).random()


def test_the_definition_is_the_hosts_sampler(rng):
    for logits, sampling in cases(rng, 300):
        weights = allowed(logits, sampling.temperature, sampling.top_k, sampling.top_p)
        ids, weight = kept_tokens(logits, sampling)
        right = {token: mass for token, mass in weights.items() if mass > 0}
        assert list(ids) == list(right)
        np.testing.assert_allclose(weight, list(right.values()), rtol=1e-12)
        token, best = drawn(
            logits, sampling.temperature, sampling.top_k, sampling.top_p, first_uniform(sampling)
        )
        assert token == Sampler(sampling).pick(logits)
        assert best == logits.max()


def test_the_kernel_takes_the_hosts_token_for_the_same_seed(draw, rng):
    for logits, sampling in cases(rng, 40):
        uniform = first_uniform(sampling)
        settings = [[sampling.temperature, sampling.top_k, sampling.top_p, uniform]]
        token, best = draw(logits[None], settings)
        assert token[0] == Sampler(sampling).pick(logits)
        assert best[0] == logits.max()


def test_the_kernel_follows_the_definition_where_the_host_refuses(draw, rng):
    logits = rng.normal(size=(6, 77)).astype(np.float32)
    logits[1, 5], logits[2, 9], logits[3], logits[4, :70] = np.nan, np.inf, -np.inf, -np.inf
    settings = np.array(
        [[0, 0, 1, 0.5], [1, 3, 0.5, 0.5], [1, 0, 1, 0.5], [1, 0, 1, 0.5], [2, 9, 0.9, 0.7], [1, 0, 1, 1]]
    )
    token, best = draw(logits, settings)
    for row in range(6):
        right = drawn(logits[row], *settings[row])
        assert token[row] == right[0], row
        assert best[row] == right[1] or (math.isnan(best[row]) and math.isnan(right[1]))
