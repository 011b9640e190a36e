"""How many bytes equal a value."""

import numpy as np

FUNCTION = "count_equal"
RETURNS = "int64"
ARGUMENTS = [("x", "uint8", "in"), ("value", "uint8", "value"), ("n", "int64", "value")]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 50000}]


def inputs(sizes, rng):
    n = sizes["n"]
    return {"x": rng.integers(0, 4, size=n).astype("u1"), "value": int(rng.integers(0, 4)), "n": n}


def oracle(values):
    return {"return": np.int64(np.count_nonzero(values["x"] == values["value"]))}
