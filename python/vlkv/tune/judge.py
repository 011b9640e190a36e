"""The judge: a candidate that is wrong in any case is refused before anyone looks at its time."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlkv.errors import TuneError
from vlkv.storage.files import hash_file
from vlkv.tune.harness import Harness, Sizes, Values, draw, draw_held_out, draw_random
from vlkv.tune.limits import Limits, run_limited
from vlkv.tune.ratio import Ratio, ratio
from vlkv.tune.runner import ARCHITECTURES, LEAK_CALLS
from vlkv.tune.toolchain import Built, Candidate, Toolchain
from vlkv.tune.verdict import RIGHT, Known, Verdict

PAIRS = 24
SAMPLE = 5e-4
TIMED_INPUTS = 3
FUZZ_SECONDS = 2.0
FUZZ_BATCH = 32
BROKEN = {1: "a register that a function must keep", 2: "the floating-point mode", 4: "the direction flag"}
RUNNER = Path(__file__).parent / "runner.py"


class Judge:
    """Judges candidates of one function against the best of its versions so far, which begins as the source itself.

    `probes` are sizes that proposers ask to be tried as well.
    `secret` seeds the inputs; None draws a seed of the system, so that nobody knows the next inputs.
    `fuzz` is for how many seconds a candidate that passed the other gates gets random inputs; 0 leaves the gate out.
    """

    def __init__(
        self,
        harness: Harness,
        toolchain: Toolchain,
        pairs: int = PAIRS,
        secret: int | None = None,
        fuzz: float = FUZZ_SECONDS,
    ) -> None:
        if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
            raise TuneError(
                f"vlkv tune needs Linux on {' or '.join(ARCHITECTURES)} for its sandbox, "
                f"this is {sys.platform} on {platform.machine()}"
            )
        self.harness, self.toolchain, self.pairs, self.fuzz = harness, toolchain, pairs, fuzz
        self.rng = np.random.default_rng(secret)
        self._known = Known("the machine code is that of an earlier candidate")
        self.probes: list[Sizes] = []
        self._sanitizer = toolchain.sanitizer()
        if not all(Path(path).is_absolute() for path in self._sanitizer):
            raise TuneError("gcc has no address sanitizer here; vlkv tune needs libasan and libubsan")

    def judge(self, candidate: Candidate, best: Path) -> tuple[Verdict, Path | None]:
        """Returns the verdict on a candidate and its library; `best` is the library to be faster than."""
        begin = time.perf_counter()
        built = self.toolchain.build(candidate)
        if built.path is None:
            return Verdict(
                "compile", built.reason, compile_seconds=built.seconds, seconds=built.seconds
            ), None
        passed: dict[str, Any] = {"compile_seconds": built.seconds}
        code = hash_file(built.path)
        earlier = self._known.verdict(code, built.seconds, time.perf_counter() - begin)
        if earlier is not None:
            return earlier, None
        gate, why = self.right(built)
        self._known.note(code, gate or RIGHT)
        if gate:
            shown = why if gate != "held-out" else "wrong for sizes that are not shown"
            return Verdict(gate, why, shown=shown, seconds=time.perf_counter() - begin, **passed), None
        found, why = self.compare(best, built.path)
        if found is not None and found.faster:  # a second look, as one of a hundred equals seems faster
            found, why = self.compare(best, built.path)
        seconds = time.perf_counter() - begin
        if found is None:
            self._known.note(code, "held-out")
            return Verdict("held-out", why, shown="wrong while it was timed", seconds=seconds, **passed), None
        if not found.faster:
            why = f"takes {found.value:.3f} of the best's time ({found.low:.3f} to {found.high:.3f})"
            return Verdict(RIGHT, why, True, found, seconds=seconds, **passed), built.path
        why = f"takes {found.value:.3f} of the former best's time"
        return Verdict(None, why, True, found, seconds=seconds, **passed), built.path

    def know(self, library: Path) -> None:
        """Notes a library that has passed, so that the same machine code is not timed twice."""
        self._known.note(hash_file(library))

    def right(self, built: Built) -> tuple[str | None, str]:
        """Returns the gate that refuses a library and why, or (None, "")."""
        assert built.path is not None
        shown = draw(self.harness, self.rng) + self.probes
        why = self.check(built.path, shown, ("end", "start"), leaks=True)
        if why:
            return "inputs", why
        if built.sanitized:
            why = self.check(built.sanitized, shown, ("heap",), sanitized=True)
            if why:
                return "sanitizer", why
        why = self._fuzzed(built)
        if why:
            return "fuzz", why
        why = self.check(built.path, draw_held_out(self.harness, self.rng), ("end", "start"))
        return ("held-out", why) if why else (None, "")

    def _fuzzed(self, built: Built) -> str:
        """Gives random inputs for `fuzz` seconds in all; returns the first fault, or "".

        They go to the sanitized library, to the candidate's own between guard pages, and as bytes to the toolchain's
        fuzz target if there is one.
        """
        if built.path is None or not self.fuzz:
            return ""
        targets: list[tuple[Path, tuple[str, ...], bool]] = [(built.path, ("end", "start"), False)]
        targets += [(built.sanitized, ("heap",), True)] if built.sanitized else []
        named = self.toolchain.fuzz_target
        seconds = self.fuzz / (len(targets) + bool(named))
        for library, places, sanitized in targets:
            end = time.perf_counter() + seconds
            while True:
                why = self.check(library, draw_random(self.harness, self.rng, FUZZ_BATCH), places, sanitized)
                if why or time.perf_counter() >= end:
                    break
            if why:
                return why
        return self._run_target(built.sanitized, named, seconds) if built.sanitized and named else ""

    def _run_target(self, library: Path, name: str, seconds: float) -> str:
        """Gives random bytes to a function of libFuzzer's signature in a sanitized library."""
        seed = int(self.rng.integers(1 << 31))
        job = {"kind": "fuzz", "libraries": [str(library)], "target": name, "seconds": seconds, "seed": seed}
        _, ended = self._run(job | {"sanitized": True, "leaks": False}, [])
        return f"the fuzz target {name}, seed {seed}: {ended}" if ended else ""

    def check(
        self,
        library: Path,
        sizes: Sequence[Sizes],
        places: Sequence[str],
        sanitized: bool = False,
        leaks: bool = False,
    ) -> str:
        """Calls a library on fresh inputs of the given sizes; returns the first fault, or ""."""
        special = self.harness.special
        cases = [
            self.harness.case(item, self.rng, bool(special) and number % 4 == 3)
            for number, item in enumerate(sizes)
        ]
        asked = [(case, place) for place in places for case in cases]
        job = {"kind": "check", "libraries": [str(library)], "sanitized": sanitized, "leaks": leaks}
        answers, ended = self._run(job, asked)
        for (case, place), answer in zip(asked, answers, strict=False):
            if "result" not in answer[0]:
                break
            why = self._fault(case, answer)
            if why:
                return f"{_sizes(case)}: {why}"
            if not answer[0]["whole"]:
                return f"{_sizes(case)}: it writes outside of its buffers ({place})"
        if ended or len(answers) < len(asked):
            at = len([answer for answer in answers if "result" in answer[0]])
            where = _sizes(asked[at][0]) if at < len(asked) else "after the last input"
            return f"{where}: {ended or 'it ends the process'}"
        kept = next((head["kept"] for head, _ in answers if "kept" in head), 0)
        if leaks and kept > LEAK_CALLS * 12:
            return f"it keeps memory: {kept} bytes after {LEAK_CALLS} calls"
        return ""

    def compare(self, best: Path, candidate: Path, timed: Sequence[Sizes] = ()) -> tuple[Ratio | None, str]:
        """Times a candidate against the best in interleaved pairs; every timed output passes the oracle too.

        The ratio is that of all timed sizes together, or of one of them if it is slower there. `timed` takes the place
        of the harness's sizes.
        """
        logs: list[tuple[float, float]] = []
        slower: Ratio | None = None
        for sizes in timed or self.harness.timed:
            cases = [self.harness.case(sizes, self.rng) for _ in range(TIMED_INPUTS)]
            order = [bool(value) for value in self.rng.permutation(self.pairs) % 2]
            job = {"kind": "time", "libraries": [str(best), str(candidate)], "order": order, "sample": SAMPLE}
            answers, ended = self._run(
                job | {"sanitized": False, "leaks": False}, [(case, "heap") for case in cases]
            )
            if ended or not answers:
                return None, ended or "it ends the process"
            head = answers[0][0]
            if not head.get("same"):
                return None, "it answers the same input differently"
            for answer in answers[1:]:
                why = self._fault(cases[answer[0]["case"]], answer)
                if why:
                    return None, why
            found = [(float(old), float(new)) for old, new in head["pairs"]]
            logs += found
            here = ratio(found)
            if here.low > 1 and (slower is None or here.value > slower.value):
                slower = here
        return slower or ratio(logs), ""

    def _fault(self, case: Values, answer: tuple[dict[str, Any], list[bytes]]) -> str | None:
        head, parts = answer
        if head.get("broken"):
            return f"it changes {BROKEN.get(head['broken'] & -head['broken'], 'what it must keep')}"
        results: dict[str, Any] = {}
        outputs = [a for a in self.harness.arguments if a.use in ("out", "inout")]
        for argument, data in zip(outputs, parts, strict=True):
            results[argument.name] = np.frombuffer(data, np.dtype(argument.dtype))
        if self.harness.returns and "result" in head:  # timed calls give their buffers back, and no value
            results["return"] = np.dtype(self.harness.returns).type(_number(head["result"]))
        return self.harness.wrong(case, results)

    def _run(
        self, job: dict[str, Any], cases: Sequence[tuple[Values, str]]
    ) -> tuple[list[tuple[dict[str, Any], list[bytes]]], str]:
        blob: list[bytes] = []
        places: dict[int, list[int]] = {}
        at = 0
        listed = []
        for case, place in cases:
            values: list[Any] = []
            for argument in self.harness.arguments:
                value = case[argument.name]
                if argument.use == "value":
                    values.append(value)
                    continue
                if id(value) not in places:
                    data = value.tobytes()
                    places[id(value)] = [at, len(data)]
                    blob.append(data)
                    at += len(data)
                values.append(places[id(value)])
            listed.append({"values": values, "place": place})
        head = json.dumps(
            job
            | {
                "caller": str(self.toolchain.caller),
                "function": self.harness.function,
                "returns": self.harness.returns,
                "repeatable": self.harness.repeatable,
                "arguments": [
                    {"dtype": a.dtype, "type": a.dtype, "use": a.use} for a in self.harness.arguments
                ],
                "cases": listed,
            }
        ).encode()
        given, out = os.memfd_create("in"), os.memfd_create("out")
        try:
            with open(given, "wb", closefd=False) as file:
                file.writelines([struct.pack("<Q", len(head)), head, *blob])
            environment: dict[str, str] = {}
            limits = Limits(seconds=8, memory=4096, file=1024)
            if job["sanitized"]:
                environment = {
                    "LD_PRELOAD": " ".join(self._sanitizer),
                    "ASAN_OPTIONS": "detect_leaks=0:symbolize=0:allocator_may_return_null=1:hard_rss_limit_mb=4096",
                    "UBSAN_OPTIONS": "print_stacktrace=0",
                }
                limits = Limits(seconds=16 + math.ceil(job.get("seconds", 0)), memory=0, file=1024)
            command = [sys.executable, "-I", "-S", str(RUNNER), str(given), str(out)]
            ended = run_limited(command, self.toolchain.folder, limits, environment, (given, out))
            size = os.lseek(out, 0, os.SEEK_END)
            answers = list(_answers(os.pread(out, size, 0)))
        finally:
            os.close(given)
            os.close(out)
        finished = bool(answers) and answers[-1][0].get("end") is True
        why = "" if finished and ended.code == 0 and not ended.text else _how(ended.code, ended.text)
        return (answers[:-1] if finished else answers), why


def _answers(data: bytes) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    at = 0
    while at + 8 <= len(data):
        size = struct.unpack_from("<Q", data, at)[0]
        try:
            head = json.loads(data[at + 8 : at + 8 + size])
            sizes = head["sizes"]
        except (ValueError, KeyError, TypeError):
            return
        at += 8 + size
        if at + sum(sizes) > len(data):
            return
        parts = []
        for length in sizes:
            parts.append(data[at : at + length])
            at += length
        yield head, parts


def _how(code: int | None, text: str) -> str:
    if code is None or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it does not end in time"
    if code == -signal.SIGSYS:
        return "it asks the system for what a function does not need (a file, output, a process, a socket)"
    if code == -signal.SIGXFSZ:
        return "it writes a file that is too large"
    lines = [line for line in text.splitlines() if "ERROR" in line or "error" in line.lower()]
    if lines:
        return lines[0][:300]
    if code < 0:
        return f"it crashes ({signal.Signals(-code).name})"
    if text:
        return f"it prints {text[:60]!r}"
    return f"it ends the process (code {code})"


def _number(text: Any) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _sizes(case: Values) -> str:
    shown = ", ".join(
        f"{name}[{value.size}]" if isinstance(value, np.ndarray) else f"{name}={value:g}"
        for name, value in case.items()
    )
    return f"inputs {shown}"
