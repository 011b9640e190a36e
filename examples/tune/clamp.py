"""Elements limited to [low, high] in place; NaN stays."""

import numpy as np

FUNCTION = "clamp"
ARGUMENTS = [
    ("x", "float32", "inout"),
    ("low", "float32", "value"),
    ("high", "float32", "value"),
    ("n", "int64", "value"),
]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 50000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.normal(size=n).astype("f4"), "low": -0.5, "high": 0.75, "n": n}


def oracle(values):
    return {"x": np.clip(values["x"], np.float32(-0.5), np.float32(0.75))}
