"""Both implementations, instruction sets, random numbers. A failing test prints its seed, and VLKV_SEED repeats one."""

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


@pytest.fixture(params=["portable", "avx2", "avx512"])
def simd(request):
    """Runs the test with each instruction set of vlkv._native that the processor has."""
    native = pytest.importorskip("vlkv._native")
    if not native.simd_available(request.param):
        pytest.skip(f"no {request.param} here")
    before = native.simd()
    native.set_simd(request.param)
    yield request.param
    native.set_simd(before)


@pytest.fixture
def rng():
    seed = int(os.environ.get("VLKV_SEED", secrets.randbits(32)))
    print(f"VLKV_SEED={seed}")
    return np.random.default_rng(seed)
