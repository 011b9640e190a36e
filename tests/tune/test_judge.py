"""Nothing wrong is admitted: candidates with faults of every kind, at every level, are refused."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tune.candidates import WRONG, after, generated
from vlkv.tune import judge as judging
from vlkv.tune import llvm
from vlkv.tune.harness import Harness
from vlkv.tune.judge import Judge
from vlkv.tune.limits import run_limited
from vlkv.tune.ratio import ratio
from vlkv.tune.toolchain import SANITIZERS, Built, Candidate, Toolchain

EXAMPLES = Path(__file__).parents[2] / "examples" / "tune"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc") or platform.machine() != "x86_64",
    reason="needs gcc and Linux on x86-64",
)
REASSOCIATED = ("-O3", "-march=native", "-fno-signed-zeros", "-fno-trapping-math", "-fassociative-math")


class Bench:
    """A judge, the source's own library, and shortcuts."""

    def __init__(self, name: str, folder: Path) -> None:
        source = EXAMPLES / f"{name}.c"
        self.text = source.read_text()
        self.toolchain = Toolchain(Harness.load(EXAMPLES / f"{name}.py"), source, folder)
        self.judge = Judge(self.toolchain.harness, self.toolchain, pairs=12, fuzz=0)
        self.built = self.toolchain.build(Candidate("source", self.text))
        assert self.built.path

    def gate(
        self, text: str, level: str = "source", flags: tuple[str, ...] = ("-O1",)
    ) -> tuple[str | None, str]:
        """Returns the gate before timing that refuses a candidate; None if it is right."""
        built = self.toolchain.build(Candidate(level, text, flags))
        return self.judge.right(built) if built.path else ("compile", built.reason)


@pytest.fixture(scope="module")
def saxpy(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("saxpy", tmp_path_factory.mktemp("saxpy"))


def test_the_source_itself_is_right(saxpy: Bench):
    assert saxpy.judge.right(saxpy.built) == (None, "")
    assert saxpy.gate(after("")) == (None, "")


SAID = {
    "fault": ("gate", "says"),
    "syntax": ("compile", "does not compile"),
    "hangs": ("inputs", "does not end in time"),
    "writes behind": ("inputs", "SIGSEGV"),
    "writes before": ("inputs", "outside of its buffers"),
    "only even sizes": ("inputs", "the oracle says"),
    "only small sizes": ("held-out", "the oracle says"),
    "not the timed size": ("held-out", "the oracle says"),
    "keeps memory": ("inputs", "keeps memory"),
    "uses freed memory": ("sanitizer", "heap-use-after-free"),
    "undefined": ("sanitizer", "signed integer overflow"),
    "prints": ("inputs", "asks the system"),
    "reads a file": ("inputs", "asks the system"),
    "forks": ("inputs", "asks the system"),
    "embeds a file": ("compile", ".incbin"),
    "runs at load": ("compile", "code runs at load"),
    "keeps state": ("compile", "state between calls"),
    "changes registers": ("inputs", "a register"),
    "changes rounding": ("inputs", "floating-point mode"),
}
"""The gate, and words of the reason, of faults that one gate is there for."""


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_candidate_is_refused(saxpy: Bench, fault: str):
    gate, why = saxpy.gate(WRONG[fault])
    assert gate is not None, fault
    assert why and "Traceback" not in why
    expected, words = SAID.get(fault, (gate, ""))
    assert gate == expected and words in why, why


def test_random_inputs_for_a_time_are_a_gate_of_their_own(saxpy: Bench, monkeypatch: pytest.MonkeyPatch):
    """Without the inputs of other gates, the fuzz sees wrong results at every level, and undefined behaviour."""
    for name in ("draw", "draw_held_out"):
        monkeypatch.setattr(judging, name, lambda harness, rng: [dict.fromkeys(harness.sizes, 8)])
    assert saxpy.gate(WRONG["only multiples of eight"])[0] is None
    monkeypatch.setattr(saxpy.judge, "fuzz", 0.01)
    assert saxpy.gate(after("")) == (None, "")
    assert saxpy.gate(WRONG["only multiples of eight"])[0] == "fuzz"
    assembly = saxpy.toolchain.lower(Candidate("source", WRONG["only multiples of eight"]), "assembly")
    assert saxpy.gate(assembly, "assembly")[0] == "fuzz"
    gate, why = saxpy.gate(after("volatile int64_t big = INT64_MAX - 8; big = big + n;"))
    assert gate == "fuzz" and "signed integer overflow" in why


def test_hundreds_of_wrong_candidates_are_refused_without_running_on(saxpy: Bench):
    texts = list(generated())
    assert len(texts) >= 300
    rng = np.random.default_rng(int(os.environ.get("VLKV_SEED", "0")))
    count = int(os.environ.get("VLKV_TUNE_WRONG", "24"))  # all of them take minutes: VLKV_TUNE_WRONG=400
    for at in rng.permutation(len(texts))[:count]:
        gate, _ = saxpy.gate(texts[at])
        assert gate is not None, texts[at]


def test_assembly_is_judged_behind_guard_pages(saxpy: Bench):
    right = saxpy.toolchain.lower(Candidate("source", saxpy.text, ("-O1",)), "assembly")
    assert saxpy.gate(right, "assembly") == (None, "")
    wrong = right.replace("\tret\n", "\tmovl $1, %r12d\n\tret\n")
    assert "register" in saxpy.gate(wrong, "assembly")[1]
    assert saxpy.gate(right.replace("addss", "subss"), "assembly")[0] == "inputs"
    assert saxpy.gate(f'{right}\n\t.incbin "/etc/hostname"\n', "assembly")[0] == "compile"


@pytest.mark.skipif(not llvm.kind(), reason="needs clang, opt and llc, or ziglang and llvmlite")
def test_llvm_ir_is_judged_too(saxpy: Bench):
    right = """define void @saxpy(float %a, ptr %x, ptr %y, ptr %z, i64 %n) {
entry:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %loop, label %end
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %px = getelementptr float, ptr %x, i64 %i
  %py = getelementptr float, ptr %y, i64 %i
  %pz = getelementptr float, ptr %z, i64 %i
  %vx = load float, ptr %px
  %vy = load float, ptr %py
  %m = fmul float %vx, %a
  %s = fadd float %m, %vy
  store float %s, ptr %pz
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  ret void
}
"""
    if llvm.kind() == "path" and "version 14" in _version():  # its pointers have types
        right = re.sub(r"\bptr\b", "float*", right)
    gate = saxpy.gate(right, "ir", ("-O2",))
    assert gate == (None, ""), gate
    assert saxpy.gate(right.replace("fadd", "fsub"), "ir", ("-O2",))[0] == "inputs"


def _version() -> str:
    return subprocess.run(["opt", "--version"], capture_output=True, text=True, check=True).stdout


def test_only_a_faster_one_is_admitted(tmp_path: Path):
    bench = Bench("dot", tmp_path)
    slow, library = bench.judge.judge(Candidate("source", bench.text, ("-O0",)), bench.built.path)
    assert (slow.gate, slow.correct, slow.admitted) == ("time", True, False)
    assert library
    fast, _ = bench.judge.judge(Candidate("source", bench.text, REASSOCIATED), bench.built.path)
    assert fast.correct
    again, _ = bench.judge.judge(Candidate("source", bench.text, REASSOCIATED), bench.built.path)
    assert again.gate == "time" and "earlier" in again.reason


def test_a_result_while_timed_is_compared_too(saxpy: Bench):
    text = WRONG["not the timed size"]
    wrong = saxpy.toolchain.build(Candidate("source", text, ("-O1",)), sanitize=False).path
    assert wrong
    found, why = saxpy.judge.compare(saxpy.built.path, wrong)
    assert found is None and "oracle" in why


def test_held_out_sizes_are_not_shown(saxpy: Bench):
    verdict, _ = saxpy.judge.judge(Candidate("source", WRONG["only small sizes"], ("-O1",)), saxpy.built.path)
    assert verdict.gate == "held-out"
    assert "[" not in verdict.shown and "not shown" in verdict.shown


def test_the_interval_covers_equal_times(rng: np.random.Generator):
    equal = [(1.0, float(np.exp(rng.normal(0, 0.1)))) for _ in range(200)]
    faster = [(1.0, 0.8 * float(np.exp(rng.normal(0, 0.1)))) for _ in range(200)]
    assert ratio(equal).low < 1.05 and ratio(equal).high > 0.95
    assert ratio(faster).faster and 0.7 < ratio(faster).value < 0.9


def test_no_library_is_no_candidate(saxpy: Bench):
    built = saxpy.toolchain.build(Candidate("source", "int", ("-O1",)))
    assert isinstance(built, Built) and built.path is None


def test_begin_and_end_of_a_long_output_are_kept(tmp_path: Path):
    """A sanitizer names the fault first; a builder says why it failed last."""
    words = "echo ERROR: first; head -c 100000 /dev/zero | tr '\\0' x; echo; echo last"
    ended = run_limited(["sh", "-c", words], tmp_path)
    lines = ended.text.splitlines()
    assert ended.code == 0 and (lines[0], lines[-1]) == ("ERROR: first", "last")
    assert len(ended.text) < 50_000


FUZZED = """#include <cstdint>
#include <cstdlib>
#include <thread>
extern "C" void saxpy(float, const float*, const float*, float*, int64_t) {}
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    if (size > 2) throw 1;
  } catch (int) {
  }
  if (size > 0 && data[0] == 0) std::thread([] {}).join();
  return 0;
}
"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("", "", ""),
        ("return 0;", "return static_cast<volatile char*>(std::malloc(size))[size];", "heap-buffer-overflow"),
        ("return 0;", "if (size > 300) std::abort(); return 0;", "SIGABRT"),
        ("return 0;", 'return size > 300 ? std::system("true") : 0;', "asks the system"),
    ],
)
def test_a_fuzz_target_may_throw_and_start_threads(tmp_path: Path, before: str, after: str, says: str):
    """As the operators do, which the target gives bad shapes and several threads."""
    harness = Harness.load(EXAMPLES / "saxpy.py")
    toolchain = Toolchain(harness, Path("saxpy.cpp"), tmp_path)
    (tmp_path / "f.cpp").write_text(FUZZED.replace(before, after) if before else FUZZED)
    words = [*SANITIZERS, "-shared", "-fPIC", "-w", "f.cpp", "-lpthread", "-o", "f.so"]
    subprocess.run(["g++", *words], cwd=tmp_path, check=True)
    judge = Judge(harness, toolchain)
    why = judge._run_target(tmp_path / "f.so", "LLVMFuzzerTestOneInput", 0.0)
    assert says in why if says else why == ""
