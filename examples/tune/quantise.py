"""Rounds x / scale to 8 bits, to the nearest even."""

import numpy as np

FUNCTION = "quantise"
ARGUMENTS = [
    ("x", "float32", "in"),
    ("scale", "float32", "value"),
    ("out", "int8", "out"),
    ("n", "int64", "value"),
]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {
        "x": (rng.normal(size=n) * 50).astype("f4"),
        "scale": np.float32(rng.uniform(0.1, 2)),
        "out": np.empty(n, "i1"),
        "n": n,
    }


def oracle(values):
    return {"out": np.clip(np.rint(values["x"] / np.float32(values["scale"])), -127, 127).astype("i1")}
