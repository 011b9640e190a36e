"""The Euclidean norm."""

import numpy as np

FUNCTION = "norm"
RETURNS = "float64"
ARGUMENTS = [("x", "float64", "in"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.normal(size=n), "n": n}


def oracle(values):
    return {"return": np.sqrt(np.sum(values["x"] ** 2))}


def tolerance(values):
    return {"return": (values["n"] + 3) * 2.0**-52 * np.sqrt(np.sum(values["x"] ** 2))}
