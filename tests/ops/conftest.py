"""Both implementations, and random numbers. A failing test prints its seed, and VLKV_SEED repeats one."""

import os
import secrets
from importlib import util

import numpy as np
import pytest


@pytest.fixture(params=["reference", "native"])
def implementation(request):
    if request.param == "native" and util.find_spec("vlkv._native") is None:
        pytest.skip("vlkv._native is not built")
    return request.param


@pytest.fixture
def rng():
    seed = int(os.environ.get("VLKV_SEED", secrets.randbits(32)))
    print(f"VLKV_SEED={seed}")
    return np.random.default_rng(seed)
