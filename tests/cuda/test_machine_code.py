"""A budget for the instructions in the kernels' loops over tiles. Whoever exceeds it has to give the reason.

`make test` checks the one architecture of its build, and `make cuda-all` checks all six.
"""

from collections import defaultdict

import machine_code
import pytest

from native_build import BUILD

# Kernel and head size (attend_rows: 1 is few rows): matrix products, their loads, copies, all instructions at most.
# Both sides of a branch count; Score of deep heads (0) loops over 4 steps of a product within a tile.
BUDGET = {
    "attend_rows 64 0": (64, 32, 8, 730),
    "attend_rows 64 1": (16, 8, 8, 355),
    "attend_rows 80 0": (80, 40, 10, 750),
    "attend_rows 80 1": (20, 10, 10, 345),
    "attend_rows 96 0": (96, 48, 12, 825),
    "attend_rows 96 1": (24, 12, 12, 385),
    "attend_rows 128 0": (128, 64, 16, 980),
    "attend_rows 128 1": (32, 16, 16, 520),
    "attend_rows 256 0": (64, 32, 8, 570),
    "attend_rows 256 1": (64, 32, 32, 705),
    "score_rows TensorProduct 64 1": (32, 16, 4, 390),
    "score_rows TensorProduct 128 1": (64, 32, 8, 485),
    "score_rows TensorProduct 128 0": (32, 16, 0, 95),
    "score_columns TensorProduct 64 1": (32, 16, 4, 470),
    "score_columns TensorProduct 128 1": (64, 32, 8, 600),
    "score_columns TensorProduct 128 0": (32, 16, 0, 95),
}

# All instructions of kernels without matrix products, at most.
SIZES = {
    "pick": 650,
    "draw": 3500,
    "evict_select": 3500,
    "evict_count": 650,
    "evict_collect": 1000,
    "evict_write": 2500,
}


@pytest.fixture(scope="module")
def loops():
    """Returns the loop over tiles by kernel, type and architecture."""
    program = machine_code.cuobjdump()
    objects = sorted(BUILD.glob("cpp/CMakeFiles/vlkv_core.dir/cuda/*.cu.o"))
    if program is None or not objects:
        pytest.skip(
            "no cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
            if objects
            else "no kernels"
        )
    return machine_code.kernels(objects, program)


def test_the_budget_holds(loops):
    seen = defaultdict(set)
    for (mangled, architecture), loop in loops.items():
        words = machine_code.shown(mangled).split()
        kernel = " ".join(word for word in words if word not in ("Float16", "BFloat16"))
        if kernel not in BUDGET:
            assert loop is None or not loop.of("HMMA"), f"{kernel} multiplies matrices and has no budget"
            continue
        seen[architecture].add((kernel, *(word for word in words if word.endswith("Float16"))))
        products, loads, copies, most = BUDGET[kernel]
        got = (loop.of("HMMA"), loop.of("LDSM"), loop.of("LDGSTS"))
        assert got == (products, loads, copies), f"{kernel} for SM {architecture}"
        assert loop.total <= most, f"{kernel} for SM {architecture} has {loop.total} instructions"
    for architecture, kernels in seen.items():
        assert len(kernels) == 2 * len(BUDGET), architecture


def test_kernels_that_choose_tokens_and_slots_stay_small():
    program = machine_code.cuobjdump()
    objects = [BUILD / f"cpp/CMakeFiles/vlkv_core.dir/cuda/{name}.cu.o" for name in ("pick", "draw", "evict")]
    if program is None or not all(path.is_file() for path in objects):
        pytest.skip("no cuobjdump, or no kernels")
    seen = set()
    for (mangled, architecture), size in machine_code.sizes(objects, program).items():
        kernel = machine_code.shown(mangled)
        if kernel in SIZES:
            seen.add(kernel)
            assert 100 < size <= SIZES[kernel], f"{kernel} for SM {architecture} has {size} instructions"
    assert seen == set(SIZES)


def test_a_loop_is_found_in_code():
    text = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                    /* 0x0 */
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;                  /* 0x0 */
        /*0020*/              @!P0 HMMA.16816.F32 R8, R4, R6, R8 ;           /* 0x0 */
        /*0030*/               @P1 BRA 0x10 ;                                /* 0x0 */
        /*0040*/                   BRA 0x60 ;                                /* 0x0 */
        /*0050*/                   EXIT ;                                    /* 0x0 */
    """
    code = [(int(at, 16), name, rest) for at, name, rest in machine_code.INSTRUCTION.findall(text)]
    assert [name for _, name, _ in code][:3] == ["MOV", "LDSM.16.M88.4", "HMMA.16816.F32"]
    assert machine_code.tile_loop(code) is None  # the loop has fewer products than a tile
    many = [*code[:2], *((32, "HMMA.16816.F32", "") for _ in range(8)), (40, "NOP", ""), *code[3:]]
    loop = machine_code.tile_loop(many)
    assert (loop.total, loop.of("HMMA"), loop.of("LDSM")) == (10, 8, 1)


@pytest.mark.parametrize(
    ("mangled", "text"),
    [
        ("_ZN4vlkv4cuda11attend_rowsINS0_11AttendShapeINS0_8BFloat16ELi80ELb1EEEEEvNS0_10AttendArgsE",
         "attend_rows BFloat16 80 1"),
        ("_ZN4vlkv4cuda10score_rowsINS0_13TensorProductINS0_7Float16ELi128EEEEEvNS0_9ScoreArgsE",
         "score_rows TensorProduct Float16 128"),
        ("_ZN4vlkv4cuda12evict_selectENS0_9EvictArgsE", "evict_select"),
    ],
)  # fmt: skip
def test_names(mangled, text):
    assert machine_code.shown(mangled) == text
