"""The Levenshtein distance of two strings of at most 4096 bytes."""

import numpy as np

FUNCTION = "edit_distance"
RETURNS = "int64"
ARGUMENTS = [("a", "uint8", "in"), ("b", "uint8", "in"), ("m", "int64", "value"), ("n", "int64", "value")]
SIZES = {"m": (0, 40), "n": (0, 40)}
TIMED = [{"m": 150, "n": 150}]


def inputs(sizes, rng):
    m, n = sizes["m"], sizes["n"]
    a, b = (rng.integers(97, 101, size=size).astype("u1") for size in (m, n))
    return {"a": a, "b": b, "m": m, "n": n}


def oracle(values):
    a, b = values["a"].tolist(), values["b"].tolist()
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return {"return": np.int64(table[len(a), len(b)])}
