"""z = a x + y over n elements."""

import numpy as np

FUNCTION = "saxpy"
ARGUMENTS = [
    ("a", "float32", "value"),
    ("x", "float32", "in"),
    ("y", "float32", "in"),
    ("z", "float32", "out"),
    ("n", "int64", "value"),
]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    x, y = (rng.normal(size=n).astype("f4") for _ in range(2))
    return {"a": np.float32(rng.normal()), "x": x, "y": y, "z": np.empty(n, "f4"), "n": n}


def oracle(values):
    return {"z": np.float64(np.float32(values["a"])) * values["x"] + values["y"].astype("f8")}


def tolerance(values):
    # two roundings of 2**-24: the product's, and the sum's
    product = np.abs(np.float64(np.float32(values["a"])) * values["x"])
    return {"z": 2.0**-23 * (2 * product + np.abs(values["y"]))}
