"""The sum of each column of a matrix."""

import numpy as np

FUNCTION = "axis_sum"
ARGUMENTS = [
    ("m", "float32", "in"),
    ("out", "float64", "out"),
    ("rows", "int64", "value"),
    ("columns", "int64", "value"),
]
SIZES = {"rows": (0, 60), "columns": (0, 60)}
TIMED = [{"rows": 200, "columns": 200}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    r, c = sizes["rows"], sizes["columns"]
    return {"m": rng.normal(size=(r, c)).astype("f4"), "out": np.empty(c), "rows": r, "columns": c}


def oracle(values):
    return {"out": values["m"].astype("f8").sum(0)}


def tolerance(values):
    return {"out": 2 * (values["rows"] + 1) * 2.0**-53 * np.abs(values["m"].astype("f8")).sum(0)}
