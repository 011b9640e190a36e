"""The transpose of a matrix."""

import numpy as np

FUNCTION = "transpose"
ARGUMENTS = [
    ("m", "float32", "in"),
    ("out", "float32", "out"),
    ("rows", "int64", "value"),
    ("columns", "int64", "value"),
]
SIZES = {"rows": (0, 60), "columns": (0, 60)}
TIMED = [{"rows": 256, "columns": 256}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    r, c = sizes["rows"], sizes["columns"]
    return {"m": rng.normal(size=(r, c)).astype("f4"), "out": np.empty((c, r), "f4"), "rows": r, "columns": c}


def oracle(values):
    return {"out": values["m"].T}
