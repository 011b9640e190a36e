"""Keeps the elements that are not zero, in order, in place."""

import numpy as np

FUNCTION = "compact"
RETURNS = "int64"
ARGUMENTS = [("x", "int32", "inout"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 30000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.integers(-1, 2, size=n).astype("i4"), "n": n}


def oracle(values):
    kept = values["x"][values["x"] != 0]
    return {"x": np.pad(kept, (0, values["n"] - kept.size)), "return": np.int64(kept.size)}
