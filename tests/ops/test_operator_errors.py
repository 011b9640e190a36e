"""Wrong arguments of an operator give one line that starts with the operator and names the value and the limit."""

import numpy as np
import pytest

from vlkv import ops
from vlkv.errors import EngineError, OperatorError, VlkvError
from vlkv.ops import arrays


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


SCORE = {"query": zeros(2, 4, 3, 8), "key": zeros(2, 2, 5, 8), "row_position": np.zeros((2, 3), np.int64)}
EVICT = {
    "key": zeros(2, 2, 5, 8),
    "value": zeros(2, 2, 5, 8),
    "score": zeros(2, 2, 5),
    "length": 5,
    "keep": 3,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"query": [[1.0]]}, "query has type list; a NumPy array of float32, float16, bfloat16 is wanted"),
        ({"key": zeros(2, 2, 5, 8, dtype=np.float64)}, "key has dtype float64; a NumPy array of float32,"),
        ({"query": zeros(2, 4, 3, 8, dtype=">f4")}, "query has dtype >f4; a NumPy array of float32,"),
        ({"query": zeros(2, 4, 3, 8, dtype=np.float16)}, "query is float16 and key is float32; one dtype"),
        (
            {"query": zeros(4, 3, 8)},
            "query has shape [4, 3, 8]; rank 4, [B, heads, rows or slots, D], is wanted",
        ),
        ({"key": zeros(2, 0, 5, 8)}, "key has shape [2, 0, 5, 8]; at least one head and one dimension"),
        ({"query": zeros(2, 4, 3, 0)}, "query has shape [2, 4, 3, 0]; at least one head and one dimension"),
        ({"key": zeros(2, 2, 5, 4)}, "query [2, 4, 3, 8] and key [2, 2, 5, 4] differ in B or D"),
        ({"key": zeros(1, 2, 5, 8)}, "query [2, 4, 3, 8] and key [1, 2, 5, 8] differ in B or D"),
        (
            {"key": zeros(2, 3, 5, 8)},
            "4 query heads on 3 KV heads; the first must be a multiple of the second",
        ),
        ({"row_position": zeros(2, 3)}, "row_position has dtype float32; integers are wanted"),
        ({"row_position": np.zeros((2, 3), bool)}, "row_position has dtype bool; integers are wanted"),
        ({"row_position": np.zeros(3, int)}, "row_position has shape [3]; [B, W] = [2, 3] is wanted"),
        ({"row_position": 0}, "row_position has shape []; [B, W] = [2, 3] is wanted"),
        ({"row_position": np.full((2, 3), 5)}, "row_position 5 is outside -1..4 (key has 5 slots)"),
        ({"row_position": np.full((2, 3), -2)}, "row_position -2 is outside -1..4"),
        ({"scale": 0.0}, "scale 0.0 is outside 1.2e-38..3.4e+38; None is 1 / sqrt(D)"),
        ({"scale": float("nan")}, "scale nan is outside"),
        ({"scale": 1e39}, "scale 1e+39 is outside"),
        ({"threshold": -0.1}, "threshold -0.1 is outside [0, 1]; 0.01 is the paper's"),
        ({"threshold": float("nan")}, "threshold nan is outside [0, 1]"),
        ({"implementation": "gpu"}, "unknown implementation 'gpu'; known: native, reference"),
    ],
)
def test_score(change, text):
    refused(ops.score, "score", {**SCORE, **change}, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"value": zeros(2, 2, 5, 8, dtype=np.int8)}, "value has dtype int8; a NumPy array of float32,"),
        ({"value": zeros(2, 2, 5, 8, dtype=np.float16)}, "key is float32 and value is float16; one dtype"),
        (
            {"value": zeros(2, 2, 6, 8)},
            "key [2, 2, 5, 8] and value [2, 2, 6, 8] differ; they must have one shape",
        ),
        ({"key": zeros(2, 5, 8)}, "key has shape [2, 5, 8]; rank 4"),
        ({"score": zeros(2, 2, 4)}, "score is float32 [2, 2, 4]; float32 [2, 2, 5] is wanted, as of key"),
        ({"score": zeros(2, 2, 5, dtype=float)}, "score is float64 [2, 2, 5]; float32 [2, 2, 5] is wanted"),
        ({"score": None}, "score is NoneType; float32 [2, 2, 5] is wanted"),
        ({"length": 2.0}, "length has dtype float64; integers are wanted"),
        ({"keep": [1, 2, 3]}, "keep has shape [3]; [B] = [2] or one number is wanted"),
        ({"length": [5, -1]}, "length -1 is negative; 0 is the least"),
        ({"keep": -1}, "keep -1 is negative; 0 is the least"),
        ({"sinks": -2}, "sinks -2 is negative"),
        ({"recent": [0, -3]}, "recent -3 is negative"),
        ({"length": 6}, "length 6 is more than the 5 slots of key"),
        ({"sinks": 2, "recent": 2}, "sinks 2 + recent 2 is more than keep 3; keep at least their sum"),
        ({"sinks": [0, 4], "length": 1}, "sinks 4 + recent 0 is more than keep 3"),
        ({"capacity": 2}, "capacity 2 is less than the 3 slots to keep; give at least 3, or None"),
        ({"keep": [1, 9], "capacity": 4}, "capacity 4 is less than the 5 slots to keep"),
        ({"capacity": -1, "keep": 0}, "capacity -1 is less than the 0 slots to keep"),
        ({"merge": "mean"}, "unknown merge 'mean'; known: none, nearest_mean"),
        ({"implementation": "cuda"}, "unknown implementation 'cuda'; known: native, reference"),
    ],
)
def test_evict(change, text):
    refused(ops.evict, "evict", {**EVICT, **change}, text)


def refused(operator, name, arguments, text):
    with pytest.raises(OperatorError) as caught:
        operator(**arguments)
    line = str(caught.value)
    assert line.startswith(f"[{name}] {text}")
    assert "\n" not in line
    assert isinstance(caught.value, VlkvError | ValueError)


def test_the_unchanged_arguments_are_accepted(implementation):
    ops.score(**SCORE, implementation=implementation)
    ops.evict(**EVICT, implementation=implementation)


def test_without_the_native_operators(monkeypatch):
    """Asking for them raises an error that says what works. By default the reference runs."""

    def missing():
        raise EngineError("not built")

    monkeypatch.setattr(arrays, "native", missing)
    refused(
        ops.score,
        "score",
        {**SCORE, "implementation": "native"},
        "the native operators were not built; implementation='reference' works",
    )
    total, _ = ops.score(**SCORE)
    np.testing.assert_array_equal(total, ops.score(**SCORE, implementation="reference")[0])
