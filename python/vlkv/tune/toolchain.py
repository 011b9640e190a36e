"""Makes a shared library of a candidate: source, LLVM IR or assembly, by the compilers of this machine."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlkv.errors import TuneError
from vlkv.tune import elf, llvm
from vlkv.tune.harness import Harness, c_type
from vlkv.tune.limits import Ended, Limits, run_limited

LEVELS = ("source", "ir", "assembly")
MOST_TEXT = 1 << 20
BASE_FLAGS = ("-O3", "-march=native")
"""The baseline: the compiler alone at its usual best."""
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
FORBIDDEN_DIRECTIVES = re.compile(
    r"^\s*(?:\S+:\s*)*\.(incbin|include|macro|altmacro|irpc?|rept|set_init|preinit_array)\b|;\s*\.(?:incbin|include)\b",
    re.MULTILINE,
)
HIDDEN = re.compile(r"__SANITIZE_|__has_feature|__has_include|__COUNTER__|__TIME__|__DATE__")


@dataclass(frozen=True)
class Candidate:
    """A version of the function: the text of a level, and the compiler's flags.

    `flags` are gcc's for source and assembly; for IR they are the arguments of `opt`, such as `-O3`.
    """

    level: str
    text: str
    flags: tuple[str, ...] = BASE_FLAGS
    origin: str = "search"


@dataclass(frozen=True)
class Built:
    """A library, or the reason why there is none. Seconds are those of the compilers."""

    path: Path | None
    reason: str = ""
    seconds: float = 0.0
    sanitized: Path | None = None


class Toolchain:
    """The compilers for one harness and one source file (C or C++). Files are made in `folder`.

    `fuzz_target` is the name of a function of libFuzzer's signature in the sanitized libraries, or "".
    """

    fuzz_target = ""

    def __init__(self, harness: Harness, source: Path, folder: Path) -> None:
        self.harness, self.folder = harness, folder
        self.language = "c" if source.suffix == ".c" else "c++"
        self.compiler = tool("gcc" if self.language == "c" else "g++")
        self._count = 0
        self.caller = self._caller()

    def levels(self) -> tuple[str, ...]:
        """Returns the levels of this toolchain's candidates."""
        return levels()

    def build(self, candidate: Candidate, sanitize: bool = True) -> Built:
        """Compiles in processes under limits, checks what the compiler read and what the library would do at load."""
        begin = time.perf_counter()
        folder = self.folder / f"c{self._count}"
        self._count += 1
        folder.mkdir()
        path, why = self._library(candidate, folder)
        extra = None
        if path and sanitize and candidate.level == "source":
            extra, why = self._sanitized(folder)
            path = path if extra else None
        return Built(path, why, time.perf_counter() - begin, extra)

    def lower(self, candidate: Candidate, level: str) -> str:
        """Returns a candidate of level source as the text of a lower level: what the compiler makes of it."""
        folder = self.folder / f"c{self._count}"
        self._count += 1
        folder.mkdir()
        (folder / self._name()).write_text(candidate.text)
        if level == "assembly":
            self._run([*self._cc(candidate.flags), "-S", self._name(), "-o", "f.s"], folder)
            made = folder / "f.s"
        else:
            llvm.emit(self._name(), folder)
            made = folder / "f.ll"
        if not made.exists():
            raise TuneError(f"the function does not compile to level {level}")
        return made.read_text()

    def _library(self, candidate: Candidate, folder: Path) -> tuple[Path | None, str]:
        text = candidate.text
        if len(text) > MOST_TEXT or "\0" in text:
            return None, f"the text has {len(text)} characters; at most {MOST_TEXT}, without NUL"
        if candidate.level == "source":
            why = self._assembled(candidate, folder)
        elif candidate.level == "ir":
            why = self._from_ir(candidate, folder)
        else:
            (folder / "f.s").write_text(text)
            why = ""
        if why:
            return None, why
        found = FORBIDDEN_DIRECTIVES.search((folder / "f.s").read_text(errors="replace"))
        if found:
            return None, f"the assembly has the directive {' '.join(found.group().split())!r}"
        command = [
            self.compiler,
            "-shared",
            "-nostartfiles",
            "-Wl,-z,defs,-z,noexecstack,-z,now,--build-id=none",
            "f.s",
            "-lm",
        ]
        why = failed(self._run([*command, "-o", "f.so"], folder))
        if why:
            return None, why
        data = (folder / "f.so").read_bytes()
        why = elf.fault(data) or ""
        if f"\0{self.harness.function}\0".encode() not in data:
            why = f"it defines no function {self.harness.function} with C's name"
        return (None, why) if why else (folder / "f.so", "")

    def _assembled(self, candidate: Candidate, folder: Path) -> str:
        hidden = HIDDEN.search(candidate.text)
        if hidden:
            return f"the source uses {hidden.group()}, by which builds could differ"
        name = self._name()
        (folder / name).write_text(candidate.text)
        command = self._cc(candidate.flags)
        why = failed(self._run([*command, "-MD", "-MF", "f.d", "-S", name, "-o", "f.s"], folder))
        if why:
            return why
        read = (folder / "f.d").read_text().replace("\\\n", " ").split(":", 1)[1].split()
        for path in read:
            if path != name and not _is_header(path):
                return f"the source includes {Path(path).name}, which is no header of the system"
        return ""

    def _from_ir(self, candidate: Candidate, folder: Path) -> str:
        (folder / "in.ll").write_text(candidate.text)
        return failed(llvm.finish(candidate.flags, folder))

    def _sanitized(self, folder: Path) -> tuple[Path | None, str]:
        command = [*self._cc(SANITIZERS), "-shared", self._name(), "-lm", "-o", "sanitized.so"]
        why = failed(self._run(command, folder))
        return (None, why) if why else (folder / "sanitized.so", "")

    def sanitizer(self) -> list[str]:
        """Returns what a process loads first to run sanitized code: the address sanitizer's library, and C++'s.

        The sanitizer looks for C++'s exceptions when it is loaded, and not again.
        """
        names = ["libasan.so"] + (["libstdc++.so"] if self.language == "c++" else [])
        asked = [[self.compiler, f"-print-file-name={name}"] for name in names]
        return [run_limited(command, self.folder).text.strip() for command in asked]

    def _caller(self) -> Path:
        (self.folder / "caller.c").write_text(caller(self.harness))
        why = failed(
            self._run([tool("gcc"), "-O1", "-fPIC", "-shared", "caller.c", "-lm", "-o", "caller.so"], None)
        )
        if why:
            raise TuneError(f"{self.harness.path}: no caller for {self.harness.prototype()} {why}")
        return self.folder / "caller.so"

    def _cc(self, flags: tuple[str, ...]) -> list[str]:
        # names are C's in both languages; a candidate's pragmas may still choose its own optimisation
        return [self.compiler, "-fPIC", "-fno-math-errno", "-w", *flags]

    def _name(self) -> str:
        return "f.c" if self.language == "c" else "f.cpp"

    def _run(self, command: list[str], folder: Path | None) -> Ended:
        return run_limited(command, folder or self.folder, Limits(seconds=10, memory=2048, file=64))


def levels() -> tuple[str, ...]:
    """Returns the levels that this machine can work at: IR needs LLVM, see `vlkv.tune.llvm`."""
    return tuple(level for level in LEVELS if level != "ir" or llvm.kind())


def caller(harness: Harness) -> str:
    """Returns the C text of the trusted caller: `vlkv_call` checks registers and modes, `vlkv_time` repeats a call."""
    types = [f"{c_type(a.dtype)} {'' if a.use == 'value' else '*'}" for a in harness.arguments]
    declared = "".join(f", {kind}a{n}" for n, kind in enumerate(types))
    passed = ", ".join(f"a{n}" for n in range(len(types)))
    returns = c_type(harness.returns) if harness.returns else "void"
    result, give = (f"{returns} r = ", "return r;") if harness.returns else ("", "")
    text = (Path(__file__).parent / "caller.c").read_text()
    return (
        text.replace("@TYPES@", ", ".join(types) or "void")
        .replace("@DECLARED@", declared)
        .replace("@PASSED@", passed)
        .replace("@RETURNS@", returns)
        .replace("@RESULT@", result)
        .replace("@GIVE@", give)
    )


@cache
def tool(name: str) -> str:
    """Returns the path of a program. Raises `TuneError`."""
    found = shutil.which(name)
    if not found:
        raise TuneError(f"no {name} on the path; vlkv tune needs gcc, and g++ for C++ and for engines")
    return found


def _is_header(path: str) -> bool:
    real = Path(path).resolve()
    return any(
        real.is_relative_to(place)
        for place in ("/usr/include", "/usr/lib", "/usr/local/include", "/usr/lib64")
    )


def failed(ended: Ended) -> str:
    """Returns why a compiler failed, in one line, or ""."""
    if ended.code == 0:
        return ""
    if ended.code is None:
        return "does not compile: the compiler's time is over"
    lines = [line for line in ended.text.splitlines() if "error" in line.lower()] or ended.text.splitlines()
    return f"does not compile: {(lines or [f'code {ended.code}'])[0][:300]}"
