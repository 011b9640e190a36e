"""Compares the Python binding of the native core with the float64 oracles."""

import importlib.util
import math
import secrets
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

_native = pytest.importorskip("vlkv._native", reason="the native core is not built")


def load_oracle(name):
    path = Path(__file__).parents[1] / "oracles" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"native_oracle_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


score_oracle = load_oracle("score")
evict_oracle = load_oracle("evict")

SIMD = [name for name in ("portable", "avx2", "avx512") if _native.simd_available(name)]
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture
def rng():
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(params=SIMD)
def simd(request):
    before = _native.simd()
    _native.set_simd(request.param)
    yield request.param
    _native.set_simd(before)


def bits(array):
    """Returns what the binding takes: a bfloat16 array as its bits."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def native_score(query, key, position, scale=0.0, threshold=0.01, threads=0):
    batch, kv_heads, slots = key.shape[:3]
    score = np.zeros((batch, kv_heads, slots), np.float32)
    pairs = np.zeros(batch, np.int64)
    below = np.zeros(batch, np.int64)
    _native.score(bits(query), bits(key), position, scale, threshold, score, pairs, below, threads)
    return score, pairs, below


def native_evict(key, value, score, length, keep, sinks, recent, capacity, per_head=True, merge=False):
    batch, heads, _, dim = key.shape
    new_key = np.full((batch, heads, capacity, dim), 7, key.dtype)
    new_value = np.full((batch, heads, capacity, dim), 7, key.dtype)
    position = np.full((batch, heads, capacity), 7, np.int32)
    lengths = [np.asarray(n, np.int64) for n in (length, keep, sinks, recent)]
    _native.evict(
        bits(key), bits(value), score, *lengths, bits(new_key), bits(new_value), position, per_head, merge
    )
    return new_key, new_value, position


def logit_error(query, key):
    """Bounds a float32 logit's error: D products, the scale and log2(e) give (D + 3) eps of the sum of magnitudes."""
    dim = query.shape[-1]
    norms = np.abs(query.astype(np.float64)).sum(-1).max() * np.abs(key.astype(np.float64)).max()
    return (dim + 3) * EPS * float(norms) / math.sqrt(dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_score_matches_the_oracle(rng, simd, dtype, index):
    for _ in range(6):
        kv_heads, group = int(rng.integers(1, 4)), int(rng.choice([1, 2, 4, 7]))
        batch, rows, slots, dim = (int(n) for n in rng.integers((1, 1, 1, 1), (4, 12, 120, 40)))
        query = rng.standard_normal((batch, kv_heads * group, rows, dim)).astype(DTYPES[dtype])
        key = rng.standard_normal((batch, kv_heads, slots, dim)).astype(DTYPES[dtype])
        position = rng.integers(-1, slots, (batch, rows)).astype(index)
        score, pairs, below = native_score(query, key, position)
        scale = dim**-0.5
        expected, expected_pairs, expected_below = score_oracle.score(query, key, position, scale, 0.01)
        # Relative: twice the error of a logit in the weight and in the softmax's sum, then one eps a term.
        error = logit_error(query, key)
        tolerance = 2 * math.expm1(2 * error) + EPS * (rows * group + slots / 96 + 112)
        np.testing.assert_allclose(score, expected, rtol=tolerance, atol=1e-30)
        np.testing.assert_array_equal(pairs, expected_pairs)
        unclear = score_oracle.near(query, key, position, scale, 0.01, 4 * error + 1e-6)
        assert (np.abs(below - expected_below) <= unclear).all()


def test_score_takes_views_and_adds_to_its_outputs(rng):
    cache = rng.standard_normal((2, 3, 200, 24), np.float32)
    query = rng.standard_normal((1, 6, 5, 24), np.float32)
    position = np.array([[59, 3, -1, 40, 0]])
    key = cache[1:, :, 100:160]
    score, pairs, below = native_score(query, key, position)
    dense = native_score(query, np.ascontiguousarray(key), position)
    np.testing.assert_array_equal(score, dense[0])
    buffer = np.zeros((1, 3, 300), np.float32)
    for _ in range(2):
        _native.score(query, key, position, 0, 0.01, buffer[:, :, 50:110], pairs, below)
    np.testing.assert_array_equal(buffer[:, :, 50:110], 2 * score)
    assert not buffer[:, :, :50].any() and not buffer[:, :, 110:].any()
    np.testing.assert_array_equal(pairs, 3 * dense[1])
    np.testing.assert_array_equal(below, 3 * dense[2])


@pytest.mark.parametrize("shape", [(0, 2, 2, 3, 5), (1, 4, 2, 0, 5), (1, 4, 2, 0, 0), (2, 2, 1, 3, 0)])
def test_score_of_nothing(shape):
    batch, heads, kv_heads, rows, slots = shape
    query = np.zeros((batch, heads, rows, 8), np.float32)
    key = np.zeros((batch, kv_heads, slots, 8), np.float32)
    score, pairs, below = native_score(query, key, np.full((batch, rows), -1))
    assert not score.any() and not pairs.any() and not below.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_evict_matches_the_oracle(rng, simd, dtype, merge, per_head):
    for attempt in range(25):
        batch, heads, slots, dim = (int(n) for n in rng.integers((1, 1, 0, 1), (4, 4, 60, 20)))
        key, value = rng.standard_normal((2, batch, heads, slots, dim)).astype(DTYPES[dtype])
        # Whole numbers: ties are common, and their float32 sums over heads are exact.
        score = rng.integers(-4, 5, (batch, heads, slots)).astype(np.float32)
        if attempt % 2:
            score[rng.random(score.shape) < 0.4] = np.nan
        length = rng.integers(0, slots + 1, batch)
        keep = rng.integers(0, slots + 4, batch)
        sinks = rng.integers(0, keep + 1)
        recent = rng.integers(0, keep - sinks + 1)
        capacity = int(np.minimum(keep, length).max()) + int(rng.integers(0, 3))
        got = native_evict(key, value, score, length, keep, sinks, recent, capacity, per_head, merge)
        expected = evict_oracle.evict(
            key,
            value,
            score,
            length,
            keep,
            sinks,
            recent,
            capacity,
            per_head,
            "nearest_mean" if merge else "none",
        )
        np.testing.assert_array_equal(got[2], expected[2])
        for new, right in zip(got[:2], expected[:2], strict=True):
            # float32 sums of at most `slots` numbers under 7, then half an ulp of the cache's type.
            ulp = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
            absolute = 7 * (slots + 1) * EPS if merge else 0
            np.testing.assert_allclose(new.astype(np.float64), right, rtol=ulp if merge else 0, atol=absolute)


def test_evict_reads_and_writes_views(rng):
    cache = rng.standard_normal((4, 2, 50, 8)).astype(np.float16)
    score = rng.standard_normal((1, 2, 90)).astype(np.float32)
    pool = np.full((3, 2, 40, 8), 9, np.float16)
    out = np.full((3, 2, 40, 8), 9, np.float16)
    position = np.zeros((1, 2, 10), np.int32)
    numbers = [np.array([n]) for n in (45, 10, 2, 3)]
    _native.evict(
        cache[2:3], cache[3:], score[:, :, 20:70], *numbers, pool[1:2, :, 5:15], out[:1, :, 30:], position
    )
    dense = native_evict(cache[2:3].copy(), cache[3:].copy(), score[:, :, 20:70].copy(), *numbers, 10)
    np.testing.assert_array_equal(pool[1:2, :, 5:15], dense[0])
    np.testing.assert_array_equal(out[:1, :, 30:], dense[1])
    np.testing.assert_array_equal(position, dense[2])
    pool[1:2, :, 5:15] = 9
    out[:1, :, 30:] = 9
    assert (pool == 9).all() and (out == 9).all()


def test_refusals_are_value_errors(rng):
    query, key = np.zeros((1, 4, 3, 8), np.float32), np.zeros((1, 2, 10, 8), np.float32)
    position = np.array([[1, 2, 3]])

    def refusal(query=query, key=key, position=position, threshold=0.01):
        with pytest.raises(ValueError) as caught:
            native_score(query, key, position, threshold=threshold)
        return str(caught.value)

    assert refusal(position=np.array([[1, 10, 3]])) == "[score] row_position[0, 1] is 10, not in [-1, 10)"
    assert refusal(threshold=2) == "[score] threshold is 2, not in [0, 1]"
    assert (
        refusal(key=key.astype(np.float64))
        == "[score] key is not float32, float16, bfloat16 (as uint16) or int8"
    )
    assert refusal(key=key[..., :4]) == "[score] key has shape (1, 2, 10, 4), not (1, 2, 10, 8)"
    assert refusal(query=query[0]) == "[score] query has shape (4, 3, 8), not 4 dimensions"
    assert refusal(position=position.astype(float)) == "[score] row_position is not int32 or int64"
    assert (
        refusal(query=query[:, :, :, ::2], key=key[..., :4])
        == "[score] query's last axis has stride 2, not 1"
    )
    score = np.zeros((1, 2, 10), np.float32)
    with pytest.raises(
        ValueError, match=r"^\[evict\] sinks\[0\] \+ recent\[0\] is 3 \+ 3, more than keep 5$"
    ):
        native_evict(key, key, score, [10], [5], [3], [3], 5)
    with pytest.raises(
        ValueError, match=r"^\[evict\] capacity is 4, less than the 5 slots that prompt 0 keeps$"
    ):
        native_evict(key, key, score, [10], [5], [3], [2], 4)
    with pytest.raises(ValueError, match=r"^\[evict\] length\[0\] is 11, not in \[0, 10\]$"):
        native_evict(key, key, score, [11], [5], [3], [2], 5)


def test_several_threads_at_once(rng):
    """The binding releases the interpreter's lock. Callers run in parallel and get the same bits."""
    query = rng.standard_normal((1, 8, 16, 32), np.float32)
    key = rng.standard_normal((1, 2, 700, 32), np.float32)
    position = rng.integers(0, 700, (1, 16))
    expected = native_score(query, key, position, threads=1)
    wrong = []

    def call():
        for _ in range(20):
            got = native_score(query, key, position, threads=2)
            wrong.extend(i for i in range(3) if not np.array_equal(got[i], expected[i]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_settings():
    before = _native.threads()
    _native.set_threads(3)
    assert _native.threads() == 3
    _native.set_threads(0)
    assert _native.threads() >= 1
    _native.set_threads(before)
    assert _native.simd() in ("portable", "avx2", "avx512")
    assert _native.version().count(".") == 2
    with pytest.raises(ValueError, match="threads is -1"):
        _native.set_threads(-1)
    with pytest.raises(ValueError, match="not portable, avx2 or avx512"):
        _native.set_simd("mmx")
