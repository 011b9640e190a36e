"""Starts a program under limits: seconds, memory, file size, a process group, and no network if permitted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
MIB = 1 << 20
MOST_TEXT = 4000


@dataclass(frozen=True)
class Limits:
    """Limits of one process. Seconds of CPU and of the clock, MiB of address space (0: none) and of a file."""

    seconds: int = 20
    memory: int = 2048
    file: int = 256


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code (negative: the signal; None: the time limit), and its output.

    Of a long output the middle is left out.
    """

    code: int | None
    text: str


@cache
def network_is_cut() -> bool:
    """Returns whether this process may start others without a network (user namespaces, or root)."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _unshare() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def run_limited(
    command: Sequence[str],
    folder: Path,
    limits: Limits = Limits(),
    environment: Mapping[str, str] | None = None,
    files: Sequence[int] = (),
) -> Ended:
    """Runs a command in a folder and waits. Its whole process group is ended afterwards."""

    def prepare() -> None:
        os.setsid()
        _unshare()
        resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file * MIB, limits.file * MIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits.memory:
            resource.setrlimit(resource.RLIMIT_AS, (limits.memory * MIB, limits.memory * MIB))

    log = os.memfd_create("log")
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TMPDIR": str(folder), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=files,
            preexec_fn=prepare,
        )
        code: int | None
        try:
            # the machine may be busy: the clock is more patient than the limit of CPU time
            code = process.wait(limits.seconds * 3)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size, half = os.lseek(log, 0, os.SEEK_END), MOST_TEXT // 2
        text = os.pread(log, MOST_TEXT, 0)
        if size > MOST_TEXT:
            text = text[:half] + b"\n" + os.pread(log, half, size - half)
        return Ended(code, text.decode(errors="replace"))
    finally:
        os.close(log)


def _unshare() -> bool:
    libc = ctypes.CDLL(None)
    if libc.unshare(NEW_NETWORK) == 0:
        return True
    return bool(libc.unshare(NEW_USER | NEW_NETWORK) == 0)
