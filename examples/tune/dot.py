"""The sum of products of two vectors of n elements."""

import numpy as np

FUNCTION = "dot"
RETURNS = "float64"
ARGUMENTS = [("x", "float32", "in"), ("y", "float32", "in"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.normal(size=n).astype("f4"), "y": rng.normal(size=n).astype("f4"), "n": n}


def oracle(values):
    return {"return": np.sum(values["x"].astype("f8") * values["y"].astype("f8"))}


def tolerance(values):
    # each of n additions rounds by 2**-53 of at most the sum of magnitudes, in any order
    magnitudes = np.abs(values["x"].astype("f8") * values["y"].astype("f8"))
    return {"return": 2 * (values["n"] + 1) * 2.0**-53 * np.sum(magnitudes)}
