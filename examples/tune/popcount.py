"""The number of set bits of an array."""

import numpy as np

FUNCTION = "popcount"
RETURNS = "int64"
ARGUMENTS = [("x", "uint64", "in"), ("n", "int64", "value")]
SIZES = {"n": (0, 500)}
TIMED = [{"n": 5000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.integers(0, 2**64, size=n, dtype="u8"), "n": n}


def oracle(values):
    return {"return": np.int64(np.unpackbits(values["x"].view("u1")).sum())}
