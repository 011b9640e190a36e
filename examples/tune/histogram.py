"""Counts of each of 256 bytes."""

import numpy as np

FUNCTION = "histogram"
ARGUMENTS = [("x", "uint8", "in"), ("counts", "int64", "out"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 50000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {
        "x": rng.integers(0, int(rng.integers(1, 257)), size=n).astype("u1"),
        "counts": np.empty(256, "i8"),
        "n": n,
    }


def oracle(values):
    return {"counts": np.bincount(values["x"], minlength=256)}
