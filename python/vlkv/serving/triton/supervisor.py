"""A tritonserver that is started anew when a model's process has died: Triton itself goes on and says it is ready.

tritonserver 2.51 starts no new process for a decoupled model, and answers each request with an error from then on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

STUB = b"triton_python_backend_stub"
LOOK_SECONDS = 0.5
PAUSE_SECONDS = 5.0
"""Between two starts at least: what dies at once again is not tried all the time."""
END_SECONDS = 60.0


def stubs(server: int) -> set[int]:
    """The processes of models that a server has, by `/proc`."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (place / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == server and state != "Z" and STUB in (place / "cmdline").read_bytes():
                found.add(int(place.name))
        except OSError:
            continue
    return found


class Supervisor:
    """Runs a server until it ends by itself or by a signal.

    Args:
        line: its command line.
        environment: its variables.
    """

    def __init__(self, line: Sequence[str], environment: dict[str, str]) -> None:
        self._line, self._environment = list(line), environment
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None

    def run(self) -> int:
        """Returns the server's exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._forward)
        while True:
            began = monotonic()
            self._process = subprocess.Popen(self._line, env=self._environment)
            if self._asked is not None:  # the signal came before there was someone to tell
                self._process.send_signal(self._asked)
            code = self._watch(self._process)
            if code is not None:
                return code
            sleep(max(0.0, PAUSE_SECONDS - (monotonic() - began)))

    def _watch(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit code; None where the server was ended to be started anew."""
        known: set[int] = set()
        while process.poll() is None:
            now = stubs(process.pid)
            lost = known - now
            # a server that unloads a model or ends has fewer as well: it then has ended, or others, a look later
            if lost and self._asked is None:
                sleep(LOOK_SECONDS)
                if process.poll() is None and self._asked is None and not stubs(process.pid) - known:
                    numbers = ", ".join(map(str, sorted(lost)))
                    print(
                        f"vlkv: a model's process ({numbers}) has died; the server starts anew",
                        file=sys.stderr,
                    )
                    self._end(process)
                    return None
            known = now
            sleep(LOOK_SECONDS)
        return process.returncode

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
