"""Compares the device's oracles with the definitions in tests/oracles. Runs without a GPU."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch")
gpu_oracles = pytest.importorskip("gpu_oracles")


def definition(name):
    path = Path(__file__).parents[1] / "oracles" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"gpu_definition_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_score(seed):
    for shape in [(2, 4, 2, 5, 30, 8), (1, 3, 3, 1, 1, 4), (2, 2, 1, 0, 5, 4), (1, 2, 1, 3, 0, 4)]:
        batch, query_heads, kv_heads, rows, slots, dim = shape
        query = torch.randn(batch, query_heads, rows, dim)
        key = torch.randn(batch, kv_heads, slots, dim)
        position = torch.randint(-1, max(slots, 0), (batch, rows)) if slots else torch.full((batch, rows), -1)
        total, pairs, low, high, tolerance = gpu_oracles.score(query, key, position, dim**-0.5, 0.2)
        right = definition("score").score(query.numpy(), key.numpy(), position.numpy(), dim**-0.5, 0.2)
        np.testing.assert_allclose(total.numpy(), right[0], rtol=1e-12)
        np.testing.assert_array_equal(pairs.numpy(), right[1])
        assert (low.numpy() <= right[2]).all()
        assert (right[2] <= high.numpy()).all()
        assert 0 < tolerance < 1e-2


def test_evict(seed):
    for attempt in range(20):
        slots = int(torch.randint(0, 40, ()))
        key, value = torch.randn(2, 2, 3, slots, 4)
        score = torch.randint(-3, 4, (2, 3, slots)).float()
        if attempt % 2:
            score[torch.rand(score.shape) < 0.3] = float("nan")
            score[torch.rand(score.shape) < 0.1] = float("-inf")
        length = torch.randint(0, slots + 1, (2,))
        keep = torch.randint(0, slots + 3, (2,))
        sinks = (torch.rand(2) * (keep + 1)).long()
        recent = (torch.rand(2) * (keep - sinks + 1)).long()
        counts = (length, keep, sinks, recent)
        capacity = int(torch.minimum(keep, length).max()) + 1
        for per_head in (True, False):
            for merge in (True, False):
                got = gpu_oracles.evict(key, value, score, counts, capacity, per_head, merge)
                right = definition("evict").evict(
                    key.numpy(), value.numpy(), score.numpy(), *(c.numpy() for c in counts), capacity,
                    per_head, "nearest_mean" if merge else "none",
                )  # fmt: skip
                np.testing.assert_array_equal(got[2].numpy(), right[2])
                np.testing.assert_allclose(got[0].numpy(), right[0], rtol=1e-12, atol=1e-14)
                np.testing.assert_allclose(got[1].numpy(), right[1], rtol=1e-12, atol=1e-14)


def test_attend(seed):
    """Compares with the definition of one token at a time in tests/oracles."""
    for shape in [(2, 4, 2, 5, 30, 8), (1, 3, 3, 1, 1, 4)]:
        batch, query_heads, kv_heads, rows, slots, dim = shape
        query = torch.randn(batch, query_heads, rows, dim)
        caches = torch.randn(2, batch, kv_heads, slots, dim)
        count = torch.randint(1, rows + 1, (batch,))
        length = slots - count
        got, tolerance = gpu_oracles.attend(query, *caches, length, count, 0.3, torch.bfloat16)
        for b in range(batch):
            for row in range(int(count[b])):
                last = np.array([int(length[b]) + row])
                right = definition("attend").attend(
                    query[b : b + 1, :, row].double().numpy(),
                    *(c[b : b + 1, :, last[0]].double().numpy() for c in caches),
                    *(c[b : b + 1].double().numpy() for c in caches),
                    last,
                    0.3,
                )
                # sums of terms near one that may cancel: an absolute error of some roundings
                np.testing.assert_allclose(got[b, :, row].numpy(), right[0][0], rtol=1e-12, atol=1e-14)
            assert not got[b, :, int(count[b]) :].any()
        assert 0 < float(tolerance.max()) < 0.1


def test_draw(seed):
    """The definition's token lies between the first and the last that rounding allows, and they are mostly one."""
    same = 0
    for attempt in range(100):
        vocab = int(torch.randint(1, 60, ()))
        logits = torch.randn(vocab) * 3
        if attempt % 2:
            logits = logits.round()
        temperature, top_p, uniform = (
            torch.rand(3, dtype=torch.float64) + torch.tensor([0.1, 0, 0])
        ).tolist()
        top_k = int(torch.randint(0, vocab + 2, ()))
        first, last = gpu_oracles.draw(logits, temperature, top_k, top_p, uniform)
        token, best = definition("draw").drawn(logits.numpy(), temperature, top_k, top_p, uniform)
        assert first <= token <= last
        assert best == logits.max()
        same += first == last
    assert same > 90
