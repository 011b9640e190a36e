"""Running sums of unsigned integers; they wrap."""

import numpy as np

FUNCTION = "prefix_sum"
ARGUMENTS = [("x", "uint64", "in"), ("out", "uint64", "out"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.integers(0, 2**64, size=n, dtype="u8"), "out": np.empty(n, "u8"), "n": n}


def oracle(values):
    return {"out": np.cumsum(values["x"], dtype="u8")}
