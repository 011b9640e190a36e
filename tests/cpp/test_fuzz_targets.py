"""The fuzz targets of Attend and Linear: calls by the definition pass, and each fault of `fuzz/naive.cpp` is seen."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CPP = Path(__file__).parents[2] / "cpp"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ with its sanitizers"
)
SOURCES = (
    "fuzz/attend.cpp",
    "fuzz/linear.cpp",
    "core/attend.cpp",
    "core/linear.cpp",
    "core/recall.cpp",
    "cpu/rotate.cpp",
)
WORDS = ("-std=c++20", "-O1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ATTEND = {
    1: "writes before it refuses",
    2: "writes a slot after the last",
    3: "does not pad",
    4: "takes another head's keys",
    5: "leaves a slot out above 96",
    6: "depends on threads",
    7: "is not precise",
    8: "reads behind the cache",
    9: "cuts bfloat16 off",
    10: "does not rotate int8",
    23: "attends to its own row as it is stored",
}
LINEAR = {
    11: "writes before it refuses",
    12: "forgets the last bias",
    13: "forgets the residual of many rows",
    14: "takes another zero",
    15: "forgets the last of a depth",
    16: "writes behind the result",
    17: "depends on threads",
    18: "depends on the other rows",
    19: "takes another mean",
    20: "negates the gate",
    21: "swaps codes of 4 bits",
    22: "forgets minimums",
}
Run = Callable[[str, int, int], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a target over the definition with a fault, for a number of inputs."""
    program = tmp_path_factory.mktemp("naive") / "naive"
    files = [str(Path(__file__).parent / "fuzz" / "naive.cpp"), *(str(CPP / name) for name in SOURCES)]
    folders = (f"-I{CPP}", f"-I{CPP / 'include'}")
    subprocess.run(["g++", *WORDS, *folders, *files, "-o", str(program)], check=True)

    def run(operator: str, fault: int, count: int) -> subprocess.CompletedProcess[str]:
        seed = secrets.randbits(32)
        print(f"seed {seed}")
        words = [str(program), operator, str(fault), str(seed), str(count)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.parametrize("operator", ["attend", "linear"])
def test_the_definition_passes(naive: Run, operator: str):
    done = naive(operator, 0, 400)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("fault", ATTEND, ids=ATTEND.get)
def test_faults_of_attend_are_seen(naive: Run, fault: int):
    assert naive("attend", fault, 20_000).returncode != 0


@pytest.mark.parametrize("fault", LINEAR, ids=LINEAR.get)
def test_faults_of_linear_are_seen(naive: Run, fault: int):
    assert naive("linear", fault, 20_000).returncode != 0
