"""Builds the native operators anew, with other constants and flags, into a library beside the engine.

The sources are those that the installed extension was compiled from; they lie beside it. What a choice does not change
is compiled once. Flags of instruction sets are those of cpp/CMakeLists.txt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vlkv.errors import TuneError
from vlkv.ops.cores import cpu_facts, usable_cores
from vlkv.ops.native import native
from vlkv.ops.tuned import sources_folder
from vlkv.tune.harness import Harness
from vlkv.tune.limits import Limits, run_limited
from vlkv.tune.operators.constants import OPERATORS, Choice, Operator, parse
from vlkv.tune.operators.functions import LEVEL as FUNCTIONS
from vlkv.tune.operators.functions import object_fault, overlay
from vlkv.tune.toolchain import Built, Candidate, Toolchain, failed

LEVEL = "constants"
WORDS = (
    "-std=c++20",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-w",
    "-DVLKV_TUNED",
)
KERNELS = ("-ffp-contract=fast",)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
SETS = {
    "avx512": (*AVX512, "-mfma", "-mf16c", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "portable": (),
}
VNNI = (*AVX512, "-mavx512vnni", "-mfma", "-mf16c", "-mprefer-vector-width=512")
BFLOAT16 = (*AVX512, "-mavx512bf16", "-mfma")
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COMMON = (
    *(f"core/{name}.cpp" for name in ("attend", "evict", "linear", "recall", "score")),
    *(f"cpu/{name}.cpp" for name in ("linear_many", "recall", "rotate", "thread_pool")),
    *(f"onnxruntime/{name}.cpp" for name in ("attend", "linear", "operators")),
    "tuned/table.cpp",
    "tuned/functions.cpp",
)
FUZZED = (
    *(f"core/{name}.cpp" for name in ("attend_rows", "c_api", "draw", "move_slots", "pick")),
    *(f"no_cuda/{name}.cpp" for name in ("attend", "draw", "evict", "move_slots", "pick", "score")),
    "cuda/workspace.cpp",
)
"""The C entry points, which the fuzz targets of Score and Evict call."""
PARTS = {1: "kScorePart", 2: "kAttendPart", 4: "kLinearPart"}
SECONDS = Limits(seconds=120, memory=4096, file=64)


@dataclass(frozen=True)
class Unit:
    """A file to compile: its object's name, its path in the sources, its flags, and the operator that it belongs to."""

    name: str
    file: str
    flags: tuple[str, ...]
    operator: str = ""


def units(simd: str, bfloat16: bool, vnni: bool) -> list[Unit]:
    """Returns the files of a library for one instruction set; the slow ones, the kernels, first.

    `bfloat16` and `vnni` say whether the processor has AVX512_BF16 and AVX512_VNNI.
    """
    made = []
    for operator in OPERATORS.values():
        if operator.part:
            flags = (*SETS[simd], *KERNELS, f"-DVLKV_PARTS={operator.part}")
            flags += (f"-DVLKV_TABLE={PARTS[operator.part]}",)
            made.append(Unit(f"{operator.name}_kernels", f"cpu/kernels_{simd}.cpp", flags, operator.name))
        made += [Unit(_name(file), file, (), operator.name) for file in operator.files]
    if bfloat16:
        made.append(Unit("bfloat16", "cpu/kernels_bfloat16.cpp", BFLOAT16))
        made.append(Unit("attend_bfloat16", "cpu/attend_bfloat16.cpp", BFLOAT16))
    if vnni:
        made.append(Unit("vnni", "cpu/kernels_vnni.cpp", (*VNNI, *KERNELS), "linear"))
    extra: tuple[str, ...] = ("-DVLKV_TUNED_BFLOAT16",) if bfloat16 else ()
    extra += ("-DVLKV_TUNED_VNNI",) if vnni else ()
    return made + [Unit(_name(file), file, extra if file == "tuned/table.cpp" else ()) for file in COMMON]


def fuzz_units() -> list[Unit]:
    """Returns the files that a library with sanitizers has beside: a fuzz target per operator, and what they call."""
    targets = [f"fuzz/{name}.cpp" for name in OPERATORS]
    return [Unit(_name(file), file, ()) for file in (*targets, *FUZZED)]


class Core:
    """The sources and the objects of the library without any choice, with and without sanitizers, in `folder`."""

    def __init__(self, folder: Path, compiler: str) -> None:
        self.folder, self.compiler = folder, compiler
        self.sources = sources_folder()
        if not (self.sources / "tuned" / "table.cpp").is_file():
            raise TuneError(
                "this installation has no sources of the native operators; install vlkv with a C++ compiler available"
            )
        self.simd = native().simd()
        flags = cpu_facts().get("flags", "").split()
        wide = self.simd == "avx512"
        self.units = units(self.simd, wide and "avx512_bf16" in flags, wide and "avx512_vnni" in flags)
        self._objects: dict[bool, dict[str, Path]] = {}

    def objects(self, sanitize: bool = False) -> dict[str, Path]:
        """Returns the objects by name, compiled on first use."""
        if sanitize not in self._objects:
            place = self.folder / ("sanitized" if sanitize else "plain")
            place.mkdir()
            made, why = self.compile(self._all(sanitize), (), place, sanitize)
            if why:
                raise TuneError(f"the native operators do not compile here: {why}")
            self._objects[sanitize] = made
        return self._objects[sanitize]

    def _all(self, sanitize: bool) -> list[Unit]:
        return self.units + (fuzz_units() if sanitize else [])

    def compile(
        self,
        chosen: list[Unit],
        words: tuple[str, ...],
        place: Path,
        sanitize: bool,
        changed: Path | None = None,
    ) -> tuple[dict[str, Path], str]:
        """Compiles files with further words; returns objects by name, and why one failed.

        Files of the folder `changed` are taken instead of the sources' of the same path.
        """

        def one(unit: Unit) -> str:
            own = [] if changed is None else [f"-I{changed}"]
            file = self.sources / unit.file
            if changed is not None and (changed / unit.file).exists():
                file = changed / unit.file
            command = [self.compiler, *WORDS, *own, f"-I{self.sources}", f"-I{self.sources / 'include'}"]
            command += [*unit.flags, *words, *(SANITIZED if sanitize else ())]
            command += ["-c", str(file), "-o", f"{unit.name}.o"]
            return failed(run_limited(command, place, SECONDS))

        with ThreadPoolExecutor(usable_cores()) as pool:
            faults = list(pool.map(one, chosen))
        return {u.name: place / f"{u.name}.o" for u in chosen}, next((why for why in faults if why), "")

    def library(
        self, choices: Mapping[str, Choice], place: Path, sanitize: bool = False
    ) -> tuple[Path | None, str]:
        """Builds a library with choices by operator; returns its path, or why there is none."""
        objects = dict(self.objects(sanitize))
        for name, choice in choices.items():
            own = [unit for unit in self.units if unit.operator == name]
            folder = place / f"{name}{'-sanitized' if sanitize else ''}"
            folder.mkdir(exist_ok=True)
            changed = (
                overlay(self.sources, name, choice.functions, folder / "changed")
                if choice.functions
                else None
            )
            made, why = self.compile(own, tuple(choice.arguments), folder, sanitize, changed)
            if not why and changed is not None and not sanitize:
                before = self.objects()
                pairs = [(path.read_bytes(), before[unit].read_bytes()) for unit, path in made.items()]
                why = next((found for found in (object_fault(*pair) for pair in pairs) if found), "")
            if why:
                return None, why
            objects |= made
        made_file = place / ("sanitized.so" if sanitize else "operators.so")
        command = [self.compiler, "-shared", "-Wl,-z,defs,-z,noexecstack,-Bsymbolic,--build-id=none"]
        command += [str(objects[unit.name]) for unit in self._all(sanitize)]
        command += ["-fsanitize=address,undefined"] if sanitize else []
        why = failed(run_limited([*command, "-lpthread", "-o", made_file.name], place, SECONDS))
        return (None, why) if why else (made_file, "")


class OperatorToolchain(Toolchain):
    """Makes libraries of choices for one operator; the others are as installed. A candidate's text is a choice."""

    def __init__(self, operator: Operator, harness: Harness, core: Core, folder: Path) -> None:
        super().__init__(harness, Path("operator.cpp"), folder)
        self.operator, self.core = operator, core
        self.fuzz_target = f"vlkv_fuzz_{operator.name}"

    def levels(self) -> tuple[str, ...]:
        """Returns the two levels: choices of constants, and functions of the source."""
        return (LEVEL, FUNCTIONS)

    def build(self, candidate: Candidate, sanitize: bool = True) -> Built:
        """See `Toolchain.build`. The text chooses among listed values, and may hold functions of the operator."""
        begin = time.perf_counter()
        place = self.folder / f"c{self._count}"
        self._count += 1
        place.mkdir()
        try:
            choice = parse(self.operator, candidate.text)
        except TuneError as error:
            return Built(None, str(error), time.perf_counter() - begin)
        choices = {self.operator.name: choice} if choice != Choice() else {}
        path, why = self.core.library(choices, place)
        extra = None
        if path and sanitize:
            extra, why = self.core.library(choices, place, sanitize=True)
            path = path if extra else None
        return Built(path, why, time.perf_counter() - begin, extra)


def _name(file: str) -> str:
    return file.removesuffix(".cpp").replace("/", "_")
