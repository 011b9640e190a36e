"""LLVM from wheels: what a pipeline may name, and a function that goes from C to assembly through it."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vlkv.tune import llvm
from vlkv.tune.harness import Harness
from vlkv.tune.judge import Judge
from vlkv.tune.llvm_worker import FUNCTION_PASSES, parts
from vlkv.tune.search import pipeline
from vlkv.tune.toolchain import Candidate, Toolchain

EXAMPLES = Path(__file__).parents[2] / "examples" / "tune"


@pytest.mark.parametrize(
    "flags",
    [["-load=/tmp/x.so"], ["-passes=print<x>"], ["-passes=default<O9>"], ["-passes=function(no)"], ["-O4"]],
)
def test_only_known_passes_run(flags: list[str]):
    with pytest.raises(ValueError, match="error: unknown"):
        parts(flags)


def test_drawn_pipelines_are_known(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llvm, "kind", lambda: "wheels")
    for _ in range(200):
        drawn = pipeline(rng)
        assert any(part.startswith("default<O") for part in parts([drawn]))


def test_every_pass_is_one_of_llvmlite():
    managers = pytest.importorskip("llvmlite.binding").newpassmanagers
    for name in FUNCTION_PASSES.values():
        assert hasattr(managers.ModulePassManager, f"add_{name}_pass")


@pytest.mark.skipif(
    sys.platform != "linux"
    or platform.machine() != "x86_64"
    or not shutil.which("gcc")
    or llvm.kind() != "wheels",
    reason="needs gcc, ziglang and llvmlite",
)
def test_a_function_goes_through_the_wheels(tmp_path: Path):
    source = EXAMPLES / "dot.c"
    toolchain = Toolchain(Harness.load(EXAMPLES / "dot.py"), source, tmp_path)
    assert "ir" in toolchain.levels()
    text = toolchain.lower(Candidate("source", source.read_text()), "ir")
    assert "define" in text and "@dot" in text
    judge = Judge(toolchain.harness, toolchain)
    passes = "-passes=function(sroa),default<O3>,function(loop(loop-rotate)),function(instcombine)"
    for flags in (("-O3",), (passes,)):
        built = toolchain.build(Candidate("ir", text, flags))
        assert built.path is not None, built.reason
        assert judge.right(built) == (None, "")
    refused = toolchain.build(Candidate("ir", text, ("-passes=function(no-such)",)))
    assert refused.path is None and "no-such" in refused.reason
    broken = toolchain.build(Candidate("ir", text.replace("ret ", "return "), ("-O2",)))
    assert broken.path is None and "error" in broken.reason
    wrong, changed = re.subn(r"(add(?: nsw| nuw)* i64 %\w+), 1\b", r"\1, 2", text)
    assert changed
    assert judge.right(toolchain.build(Candidate("ir", wrong, ("-O2",))))[0] == "inputs"
