"""A polynomial of degree seven at n points."""

import numpy as np

FUNCTION = "horner"
ARGUMENTS = [
    ("x", "float64", "in"),
    ("c", "float64", "in"),
    ("out", "float64", "out"),
    ("n", "int64", "value"),
]
SIZES = {"n": (0, 2000)}
TIMED = [{"n": 10000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.uniform(-2, 2, size=n), "c": rng.normal(size=8), "out": np.empty(n), "n": n}


def oracle(values):
    return {"out": np.polyval(values["c"][::-1], values["x"])}


def tolerance(values):
    return {"out": 32 * 2.0**-53 * np.polyval(np.abs(values["c"][::-1]), np.abs(values["x"]))}
