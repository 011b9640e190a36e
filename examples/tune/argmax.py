"""The first index of the largest element above -inf; NaN is passed over."""

import numpy as np

FUNCTION = "argmax"
RETURNS = "int64"
ARGUMENTS = [("x", "float32", "in"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.integers(-20, 20, size=n).astype("f4"), "n": n}


def oracle(values):
    x = np.where(np.isnan(values["x"]), -np.inf, values["x"])
    return {"return": np.int64(np.argmax(x) if x.size and x.max() > -np.inf else -1)}
