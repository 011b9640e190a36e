"""A filter with eight taps: n outputs of n + 7 inputs."""

import numpy as np

FUNCTION = "fir"
ARGUMENTS = [
    ("x", "float32", "in"),
    ("taps", "float32", "in"),
    ("out", "float32", "out"),
    ("n", "int64", "value"),
]
SIZES = {"n": (0, 3000)}
TIMED = [{"n": 20000}]
SPECIAL = (float("nan"), float("inf"))


def inputs(sizes, rng):
    n = sizes["n"]
    return {
        "x": rng.normal(size=n + 7).astype("f4"),
        "taps": rng.normal(size=8).astype("f4"),
        "out": np.empty(n, "f4"),
        "n": n,
    }


def windows(x):
    return (
        np.lib.stride_tricks.sliding_window_view(x.astype("f8"), 8)[: x.size - 7]
        if x.size > 7
        else np.empty((0, 8))
    )


def oracle(values):
    return {"out": windows(values["x"]) @ values["taps"].astype("f8")}


def tolerance(values):
    return {"out": 9 * 2.0**-23 * (np.abs(windows(values["x"])) @ np.abs(values["taps"].astype("f8")))}
