"""The compiler's report on each CUDA kernel: registers, shared memory, and no spills to local memory."""

import re
import shutil
import subprocess
from collections import defaultdict

import pytest

from native_build import BUILD

LOGS = BUILD / "cpp" / "CMakeFiles" / "vlkv_core.dir" / "cuda"
THREADS = {"score_rows": 128, "score_columns": 128, "score_combine": 32, "score_clear": 256, "score_counts": 256,
           "evict_sum_heads": 256, "evict_select": 1024, "evict_count": 1024,
           "evict_collect": 1024, "evict_write": 1024, "evict_gather": 256, "evict_merge": 256,
           "attend_append": 256, "attend_join": 128, "attend_rows": 128, "move_slots": 128, "pick": 512,
           "draw": 1024}  # fmt: skip
BLOCKS = {"score_rows": 4, "score_columns": 4, "attend_rows": 2}
"""The required number of blocks that share a multiprocessor."""
REGISTERS = 65536  # per multiprocessor, and at most per block, on every architecture from 8.0 on
SHARED = 48 << 10  # per block without an explicit request for more

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SMEM = re.compile(r"(\d+) bytes smem")


@pytest.fixture(scope="module")
def report():
    """Reads {(kernel, architecture): (registers, shared bytes, stack, spills)} from the build's logs."""
    logs = sorted(LOGS.glob("*.cu.o.log"))
    if not logs:
        pytest.skip(f"no CUDA kernels in {BUILD}: no nvcc was found")
    found = {}
    for log in logs:
        text = log.read_text()
        parts = re.split(r"(?=ptxas info    : Compiling entry function)", text)
        for part in parts:
            entry = ENTRY.search(part)
            if entry:
                stack, stores, loads = map(int, SPILL.search(part).groups())
                shared = SMEM.search(part)
                found[entry[1], entry[2]] = (
                    int(USED.search(part)[1]), int(shared[1]) if shared else 0, stack, stores + loads
                )  # fmt: skip
    return found


def kernel_of(name):
    return max((kernel for kernel in THREADS if kernel in name), key=len)


def test_every_kernel_is_there(report):
    by_architecture = defaultdict(list)
    for name, architecture in report:
        by_architecture[architecture].append(kernel_of(name))
    for architecture, kernels in by_architecture.items():
        assert set(kernels) == set(THREADS), architecture
        assert kernels.count("score_rows") == 8  # two types: two depths, deep or not aligned; float32, mixed
        assert kernels.count("attend_rows") == 20  # two types, five head sizes, few rows and many
        assert len(kernels) == 8 + 8 + 3 + 5 + 3 + 6 + 20 + 2 + 1 + 1 + 1 + 1


def test_nothing_spills_and_all_fits(report):
    names = subprocess.check_output(["c++filt"], input="\n".join(n for n, _ in report), text=True).split("\n") \
        if shutil.which("c++filt") else [n for n, _ in report]  # fmt: skip
    for ((mangled, architecture), (registers, shared, stack, spilled)), name in zip(
        report.items(), names, strict=False
    ):
        kernel = kernel_of(mangled)
        shown = re.sub(r"vlkv::cuda::|void |\(.*\)", "", name)
        print(f"sm_{architecture} {shown}: {registers} registers, {shared} bytes shared")
        assert stack == 0, f"{shown} for sm_{architecture} has a stack of {stack} bytes"
        assert spilled == 0, f"{shown} for sm_{architecture} spills {spilled} bytes"
        assert shared <= SHARED, shown
        # Warps get registers in units of 8 per thread.
        assert -(-registers // 8) * 8 * THREADS[kernel] * BLOCKS.get(kernel, 1) <= REGISTERS, shown
