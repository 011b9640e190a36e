"""Elements in opposite order."""

import numpy as np

FUNCTION = "reverse"
ARGUMENTS = [("x", "int32", "in"), ("out", "int32", "out"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 30000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.integers(-(2**31), 2**31, size=n).astype("i4"), "out": np.empty(n, "i4"), "n": n}


def oracle(values):
    return {"out": values["x"][::-1]}
