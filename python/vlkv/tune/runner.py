"""Runs a candidate's function on given buffers. A program of its own that imports nothing of vlkv: `runner.py IN OUT`.

IN and OUT are numbers of open files. The process holds no other file, and a seccomp filter ends it at any system call
that a pure function does not need. Nothing it answers is believed: the judge compares the buffers with the oracle.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import platform
import random
import struct
import sys
import time
from typing import Any, ClassVar

PAGE = mmap.PAGESIZE
FILL = 0xA5
LEAK_CALLS = 256
LEAK_ROUNDS = 3
FUZZED_BYTES, LEAST_FUZZED = 600, 5_000
MALLINFO = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)
TYPES = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "int8": ctypes.c_int8,
    "uint8": ctypes.c_uint8,
    "int16": ctypes.c_int16,
    "uint16": ctypes.c_uint16,
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
}
KILL, ALLOW = 0x80000000, 0x7FFF0000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = {
    # brk, mmap, munmap, mremap, madvise, futex, clock_gettime, rt_sigreturn, sched_yield, exit, exit_group
    "x86_64": (12, 9, 11, 25, 28, 202, 228, 15, 24, 60, 231),
    "aarch64": (214, 222, 215, 216, 233, 98, 113, 139, 124, 93, 94),
}
FORBIDDEN = {
    # clone, fork, vfork, execve, clone3, execveat, socket, connect, bind, kill, tkill, tgkill, ptrace,
    # rename, unlink, unlinkat, renameat, renameat2, mkdir, mkdirat, chmod, truncate, creat, symlink, link
    "x86_64": (
        56, 57, 58, 59, 435, 322, 41, 42, 49, 62, 200, 234, 101,
        82, 87, 263, 264, 316, 83, 258, 90, 76, 85, 88, 86,
    ),
    "aarch64": (220, 221, 435, 281, 198, 203, 200, 129, 130, 131, 117, 35, 38, 276, 34, 45, 36, 37),
}  # fmt: skip
CLONE, CLONE3, ABORT = {"x86_64": 56, "aarch64": 220}, 435, {"x86_64": 234, "aarch64": 131}  # ABORT: tgkill
CLONE_THREAD, NO_SUCH_CALL = 0x10000, 0x50000 | 38
WRITE = {"x86_64": 1, "aarch64": 64}
READ_AT = {"x86_64": 17, "aarch64": 67}
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.malloc.restype = ctypes.c_void_p
LIBC.malloc.argtypes = [ctypes.c_size_t]


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_: ClassVar[Any] = [(name, ctypes.c_size_t) for name in MALLINFO]


def filtered(rules: list[tuple[int, int, int, int]]) -> None:
    """Installs a seccomp filter: BPF instructions (code, true, false, constant), after the check of the machine."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    machine = ARCHITECTURES[platform.machine()]
    head = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (6, 0, 0, KILL), (0x20, 0, 0, 0)]
    code = b"".join(struct.pack("HBBI", *rule) for rule in head + rules)
    held = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.addressof(held))
    if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.prctl(22, 2, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def forbid(threads: bool) -> None:
    """Ends the process at a new process, a socket, a signal to others, or a changed name of a file.

    With `threads`, new threads and abort are allowed. clone3, whose flags a filter does not see, then does not exist.
    """
    machine, rules = platform.machine(), []
    for number in FORBIDDEN[machine]:
        if threads and number == CLONE[machine]:
            rules += [(0x15, 0, 4, number), (0x20, 0, 0, 16), (0x45, 0, 1, CLONE_THREAD), (6, 0, 0, ALLOW)]
            rules += [(6, 0, 0, KILL)]
        elif threads and number == CLONE3:
            rules += [(0x15, 0, 1, number), (6, 0, 0, NO_SUCH_CALL)]
        elif threads and number == ABORT[machine]:
            continue
        else:
            rules += [(0x15, 0, 1, number), (6, 0, 0, KILL)]
    filtered([*rules, (6, 0, 0, ALLOW)])


def allow_little(out: int, status: int) -> None:
    """Ends the process at all but memory, the clock, the end, writes to `out`, and `pread` of `status`."""
    rules = []
    for number in ALLOWED[platform.machine()]:
        rules += [(0x15, 0, 1, number), (6, 0, 0, ALLOW)]
    for numbers, file in ((WRITE, out), (READ_AT, status)):
        # the first argument's low word is at byte 16 of struct seccomp_data
        rules += [(0x15, 0, 4, numbers[platform.machine()]), (0x20, 0, 0, 16), (0x15, 0, 1, file)]
        rules += [(6, 0, 0, ALLOW), (6, 0, 0, KILL)]
    filtered([*rules, (6, 0, 0, KILL)])


class Buffer:
    """An argument's bytes beside a guard page ("end": its end meets the guard, "start": its begin), or in heap."""

    def __init__(self, data: bytes, place: str, writable: bool) -> None:
        self.data, self.size = data, len(data)
        if place == "heap":
            self.address: int = LIBC.malloc(max(self.size, 1)) if self.size else LIBC.malloc(0)
            self.tail, self.room = 0, 0
        else:
            inner = -(-self.size // PAGE) * PAGE
            base = LIBC.mmap(None, inner + 2 * PAGE, 3, 0x22, -1, 0)
            if base in (None, ctypes.c_void_p(-1).value):
                raise MemoryError
            ctypes.memset(base + PAGE, FILL, inner)
            self.address = base + PAGE + (inner - self.size if place == "end" else 0)
            self.tail = inner - self.size
            self.room = base + PAGE if place == "end" else self.address + self.size
            LIBC.mprotect(base, PAGE, 0)
            LIBC.mprotect(base + PAGE + inner, PAGE, 0)
        self.fill()
        if not writable and place != "heap" and self.size:
            LIBC.mprotect(base + PAGE, inner, 1)

    def fill(self) -> None:
        """Writes the given bytes."""
        ctypes.memmove(self.address, self.data, self.size)

    def read(self) -> bytes:
        """Returns the bytes as they are now."""
        return ctypes.string_at(self.address, self.size)

    def whole(self) -> bool:
        """Returns whether the bytes between buffer and page are as they were."""
        return ctypes.string_at(self.room, self.tail) == bytes([FILL]) * self.tail


class Job:
    """A job: the libraries, the signature, and the cases with their buffers."""

    def __init__(self, file: int) -> None:
        with open(file, "rb", closefd=False) as stream:
            stream.seek(0)
            size = struct.unpack("<Q", stream.read(8))[0]
            self.head: dict[str, Any] = json.loads(stream.read(size))
            blob = stream.read()
        self.arguments = self.head["arguments"]
        self.cases = [self.case(case, blob) for case in self.head["cases"]]

    def case(self, case: dict[str, Any], blob: bytes) -> list[Any]:
        """Returns a case's arguments: numbers and buffers."""
        made: list[Any] = []
        for argument, value in zip(self.arguments, case["values"], strict=True):
            if argument["use"] == "value":
                made.append(value)
            else:
                data = blob[value[0] : value[0] + value[1]]
                made.append(Buffer(data, case["place"], argument["use"] != "in"))
        return made

    def load(self) -> None:
        """Loads the trusted caller, then the candidates."""
        caller = ctypes.CDLL(self.head["caller"])
        types: list[Any] = [
            TYPES[a["type"]] if a["use"] == "value" else ctypes.c_void_p for a in self.arguments
        ]
        returns = self.head["returns"]
        self.call, self.time = caller.vlkv_call, caller.vlkv_time
        self.call.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), *types]
        self.call.restype = TYPES[returns] if returns else None
        self.time.argtypes, self.time.restype = [ctypes.c_void_p, ctypes.c_long, *types], ctypes.c_double
        forbid(threads=self.head["kind"] == "fuzz")
        self.functions: list[int] = []
        self.held = [ctypes.CDLL(path) for path in self.head["libraries"]]
        for library in self.held:
            entry = getattr(library, self.head["function"])
            self.functions.append(ctypes.cast(entry, ctypes.c_void_p).value or 0)

    @staticmethod
    def passed(case: list[Any]) -> list[Any]:
        """Returns what the function takes: numbers and addresses."""
        return [value.address if isinstance(value, Buffer) else value for value in case]

    def outputs(self, case: list[Any]) -> list[bytes]:
        """Returns the bytes of the buffers that the function may write."""
        pairs = zip(self.arguments, case, strict=True)
        return [value.read() for argument, value in pairs if argument["use"] in ("out", "inout")]


def check(job: Job, answer: Any, status: int) -> None:
    """Calls the function once per case and answers its outputs; then looks for memory that it keeps."""
    function = job.functions[-1]
    for case in job.cases:
        broken = ctypes.c_int(0)
        result = job.call(function, ctypes.byref(broken), *job.passed(case))
        whole = all(value.whole() for value in case if isinstance(value, Buffer))
        head = {"result": repr(result), "broken": broken.value, "whole": whole}
        answer(head, job.outputs(case))
    LIBC.fflush(None)
    if job.head["leaks"]:
        answer({"kept": leaked(job, function, status)}, [])


def leaked(job: Job, function: int, status: int) -> int:
    """Returns the bytes that LEAK_CALLS calls on the last case keep, the least of LEAK_ROUNDS rounds.

    malloc's cache of freed pieces counts as used and may fill in one round; what leaks does so in every round.
    """
    info = LIBC.mallinfo2
    info.restype = Mallinfo
    broken = ctypes.c_int(0)
    passed, held = job.passed(job.cases[-1]), ctypes.byref(broken)
    call = job.call
    gc.disable()
    for _ in range(4):
        call(function, held, *passed)
        before, pages = info(), int(os.pread(status, 99, 0).split()[0])
    kept = []
    for _ in range(LEAK_ROUNDS):
        for _ in range(LEAK_CALLS):
            call(function, held, *passed)
        after, more = info(), int(os.pread(status, 99, 0).split()[0])
        kept.append(max(int(after.uordblks - before.uordblks), (more - pages) * PAGE - (1 << 20), 0))
        before, pages = after, more
    return min(kept)


def timed(job: Job, answer: Any) -> None:
    """Answers pairs of seconds per call, in the order that the job gives, and each case's outputs of the candidate."""
    best, candidate = job.functions
    inout = any(a["use"] == "inout" for a in job.arguments)
    repeat = 1 if inout and not job.head["repeatable"] else 0

    def once(function: int, case: list[Any], count: int) -> float:
        for argument, value in zip(job.arguments, case, strict=True):
            if argument["use"] in ("out", "inout"):
                value.fill()
        return float(job.time(function, count, *job.passed(case)))

    first = job.cases[0]
    if not repeat:
        repeat = 1
        while once(best, first, repeat) < job.head["sample"] and repeat < 1 << 24:
            repeat *= 2
    once(candidate, first, repeat)
    pairs = []
    seen: dict[int, list[bytes]] = {}
    same = True
    for number, swap in enumerate(job.head["order"]):
        index = number % len(job.cases)
        case = job.cases[index]
        times = {}
        for function in (candidate, best) if swap else (best, candidate):
            times[function] = once(function, case, repeat) / repeat
            if function == candidate:
                out = job.outputs(case)
                same = same and out == seen.setdefault(index, out)
        pairs.append([times[best], times[candidate]])
    answer({"pairs": pairs, "repeat": repeat, "same": same}, [])
    for index, out in sorted(seen.items()):
        answer({"case": index}, out)


def fuzzed(job: Job, answer: Any) -> None:
    """Gives random bytes to the library's fuzz target for some seconds, LEAST_FUZZED times at least.

    A fault ends the process.
    """
    target = getattr(job.held[-1], job.head["target"])
    target.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    drawn = random.Random(job.head["seed"])
    end, count = time.monotonic() + job.head["seconds"], 0
    while count < LEAST_FUZZED or time.monotonic() < end:
        data = drawn.randbytes(drawn.randrange(FUZZED_BYTES))
        target(data, len(data))
        count += 1
    answer({"count": count}, [])


def main() -> None:
    """Does the job of file IN and answers in file OUT."""
    file, out = int(sys.argv[1]), int(sys.argv[2])
    job = Job(file)
    status = os.open("/proc/self/statm", os.O_RDONLY)
    os.close(file)
    job.load()
    if not job.head["sanitized"]:
        allow_little(out, status)

    def answer(head: dict[str, Any], parts: list[bytes]) -> None:
        text = json.dumps(head | {"sizes": [len(part) for part in parts]}).encode()
        for part in (struct.pack("<Q", len(text)), text, *parts):
            view = memoryview(part)
            while view:
                view = view[os.write(out, view) :]

    if job.head["kind"] == "time":
        timed(job, answer)
    elif job.head["kind"] == "fuzz":
        fuzzed(job, answer)
    else:
        check(job, answer, status)
    answer({"end": True}, [])
    os._exit(0)


if __name__ == "__main__":
    main()
