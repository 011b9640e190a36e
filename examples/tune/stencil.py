"""The mean of the five cells around each inner cell; the border stays."""

import numpy as np

FUNCTION = "stencil"
ARGUMENTS = [
    ("x", "float32", "in"),
    ("out", "float32", "out"),
    ("rows", "int64", "value"),
    ("columns", "int64", "value"),
]
SIZES = {"rows": (0, 60), "columns": (0, 60)}
TIMED = [{"rows": 150, "columns": 150}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    shape = sizes["rows"], sizes["columns"]
    return {"x": rng.normal(size=shape).astype("f4"), "out": np.empty(shape, "f4"), **sizes}


def around(x):
    return x[1:-1, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] + x[:-2, 1:-1] + x[2:, 1:-1]


def oracle(values):
    out = values["x"].astype("f8")
    if min(out.shape) > 2:
        out[1:-1, 1:-1] = np.float64(np.float32(0.2)) * around(values["x"].astype("f8"))
    return {"out": out}


def tolerance(values):
    bound = np.zeros(values["x"].shape)
    if min(bound.shape) > 2:
        bound[1:-1, 1:-1] = 8 * 2.0**-24 * around(np.abs(values["x"].astype("f8")))
    return {"out": bound}
