"""LLVM for the level of intermediate representation: clang, opt and llc of the path, or those of two wheels.

The wheels are `ziglang`, whose compiler is clang, and `llvmlite`, which runs pass pipelines and emits assembly. Both
are used if they have the same major version of LLVM and the path lacks one of the three programs.
"""

from __future__ import annotations

import re
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vlkv.tune.limits import Ended, Limits, run_limited
from vlkv.tune.llvm_worker import FUNCTION_PASSES

LIMITS = Limits(seconds=20, memory=0, file=64)
EMIT = ("-O1", "-march=native", "-Xclang", "-disable-llvm-passes", "-fPIC", "-fno-math-errno", "-w", "-g0")
ALL_PASSES = (
    "loop-unroll<full-unroll-max=8>", "loop-vectorize", "slp-vectorizer", "instcombine", "gvn", "licm", "sroa",
    "loop-rotate", "simplifycfg", "early-cse", "reassociate", "loop-distribute", "aggressive-instcombine", "dse",
)  # fmt: skip
WORKER = Path(__file__).parent / "llvm_worker.py"


@cache
def kind() -> str:
    """Returns where LLVM is: "path", "wheels", or "" for nowhere."""
    if all(shutil.which(name) for name in ("clang", "opt", "llc")):
        return "path"
    if find_spec("ziglang") is None or find_spec("llvmlite") is None:
        return ""
    return "wheels" if _zig_major() == _llvmlite_major() else ""


def passes() -> tuple[str, ...]:
    """Returns the names of passes that `finish` knows beside the usual pipelines."""
    return ALL_PASSES if kind() == "path" else tuple(FUNCTION_PASSES)


def emit(name: str, folder: Path) -> Ended:
    """Compiles the file `name` of a folder to `f.ll`, for the passes to come."""
    if kind() == "path":
        return run_limited([_path("clang"), *EMIT, "-S", "-emit-llvm", name, "-o", "f.ll"], folder, LIMITS)
    language = "cc" if name.endswith(".c") else "c++"
    command = [sys.executable, "-m", "ziglang", language, *EMIT, "-fno-sanitize=undefined"]
    return run_limited([*command, "-S", "-emit-llvm", name, "-o", "f.ll"], folder, LIMITS, _caches(folder))


def finish(flags: tuple[str, ...], folder: Path) -> Ended:
    """Runs the passes that `flags` name on `in.ll` of a folder, and writes the assembly `f.s`."""
    if kind() == "path":
        done = run_limited([_path("opt"), *flags, "-S", "in.ll", "-o", "f.ll"], folder, LIMITS)
        if done.code != 0:
            return done
        command = [_path("llc"), "-O3", "-mcpu=native", "-relocation-model=pic", "f.ll", "-o", "f.s"]
        return run_limited(command, folder, LIMITS)
    return run_limited([sys.executable, str(WORKER), "in.ll", "f.s", *flags], folder, LIMITS)


def _path(name: str) -> str:
    return shutil.which(name) or name


def _caches(folder: Path) -> dict[str, str]:
    return {"ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"), "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}


def _zig_major() -> int:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vlkv-tune-") as place:
        folder = Path(place)
        done = run_limited(
            [sys.executable, "-m", "ziglang", "cc", "--version"], folder, LIMITS, _caches(folder)
        )
    found = re.search(r"clang version (\d+)", done.text)
    return int(found.group(1)) if found else 0


def _llvmlite_major() -> int:
    from llvmlite import binding

    return int(binding.llvm_version_info[0])
