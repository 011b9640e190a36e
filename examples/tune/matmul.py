"""The product of two matrices."""

import numpy as np

FUNCTION = "matmul"
ARGUMENTS = [
    ("a", "float32", "in"),
    ("b", "float32", "in"),
    ("c", "float32", "out"),
    ("m", "int64", "value"),
    ("k", "int64", "value"),
    ("n", "int64", "value"),
]
SIZES = {"m": (0, 30), "k": (0, 30), "n": (0, 30)}
TIMED = [{"m": 64, "k": 64, "n": 64}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    m, k, n = sizes["m"], sizes["k"], sizes["n"]
    a, b = rng.normal(size=(m, k)).astype("f4"), rng.normal(size=(k, n)).astype("f4")
    return {"a": a, "b": b, "c": np.empty((m, n), "f4"), **sizes}


def oracle(values):
    return {"c": values["a"].astype("f8") @ values["b"].astype("f8")}


def tolerance(values):
    magnitudes = np.abs(values["a"].astype("f8")) @ np.abs(values["b"].astype("f8"))
    return {"c": (values["k"] + 1) * 2.0**-23 * magnitudes}
