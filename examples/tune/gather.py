"""Rows of a table of 100 rows and 8 columns, by index."""

import numpy as np

FUNCTION = "gather"
ARGUMENTS = [
    ("table", "float32", "in"),
    ("index", "int32", "in"),
    ("out", "float32", "out"),
    ("n", "int64", "value"),
]
SIZES = {"n": (0, 500)}
TIMED = [{"n": 4000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    return {
        "table": rng.normal(size=(100, 8)).astype("f4"),
        "index": rng.integers(0, 100, size=n).astype("i4"),
        "out": np.empty((n, 8), "f4"),
        "n": n,
    }


def oracle(values):
    return {"out": values["table"][values["index"]]}
