"""Finds, starts, waits for and stops a `tritonserver` process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

from vlkv.errors import VlkvError

VARIABLE = "VLKV_TRITONSERVER"
VENV = Path(sys.prefix) / "tritonserver"
"""The virtual environment in which `make .venv/served` installs the server of the wheel `nvidia-pytriton`. It has NumPy
1, because that server's Python backend is compiled for NumPy 1 and misreads arrays of NumPy 2."""
HELP = f"no tritonserver: `make .venv/served` installs one, or put it on PATH or into {VARIABLE}"


@dataclass(frozen=True)
class Installation:
    """A server's program, the environment of its Python backend, and its backends' folder if it is not the default."""

    program: Path
    prefix: Path
    backends: Path | None = None


def find() -> Installation:
    """Finds `VLKV_TRITONSERVER`, `tritonserver` on PATH, or the wheel's server. Raises `VlkvError` without one."""
    named = os.environ.get(VARIABLE) or shutil.which("tritonserver")
    if named:
        return Installation(Path(named), Path(sys.prefix))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wheel = VENV / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    if not (wheel / "bin" / "tritonserver").is_file():
        raise VlkvError(HELP)
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise VlkvError(f"the tritonserver of nvidia-pytriton has no Python backend for Python {version}")
    place = wheel / "backends" / "python" / stub.name
    if not place.exists():
        beside = place.with_name(f".{stub.name}.{os.getpid()}")
        shutil.copy2(stub, beside)
        beside.replace(place)
    return Installation(wheel / "bin" / "tritonserver", VENV, wheel / "backends")


def environment(installed: Installation) -> dict[str, str]:
    """Environment variables that make the Python backend use that environment: it runs the first `python3` of PATH."""
    found = dict(os.environ)
    found["PATH"] = f"{installed.prefix / 'bin'}{os.pathsep}{found.get('PATH', '')}"
    library = sysconfig.get_config_var("LIBDIR")
    if library and any(Path(library).glob("libpython3*.so*")):
        found["LD_LIBRARY_PATH"] = f"{library}{os.pathsep}{found.get('LD_LIBRARY_PATH', '')}"
    found.pop("PYTHONHOME", None)
    return found


def command(installed: Installation, repository: Path, arguments: Sequence[str]) -> list[str]:
    """The command line that serves a model repository; `arguments` are passed to the server."""
    found = [str(installed.program), f"--model-repository={repository.resolve()}", *arguments]
    if installed.backends is not None:
        found.append(f"--backend-directory={installed.backends}")
    return found


def free_port() -> int:
    """A currently unused port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A running server; leaving its `with` block stops it.

    Args:
        repository: the model repository.
        log: the file for its output.
        ports: the ports of HTTP, gRPC and metrics; None takes free ones.
        arguments: further arguments of the server.
        grace: seconds that running answers have to finish when it is stopped.
    """

    def __init__(
        self,
        repository: Path,
        log: Path,
        ports: tuple[int, int, int] | None = None,
        arguments: tuple[str, ...] = (),
        grace: int = 30,
    ) -> None:
        installed = find()
        self.log, self.grace = log, grace
        self.http_port, self.grpc_port, self.metrics_port = ports or (free_port(), free_port(), free_port())
        settings = [
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={grace}",
            "--exit-on-error=false",
            *arguments,
        ]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command(installed, repository, settings),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(installed),
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """The URL of the HTTP endpoint."""
        return f"http://127.0.0.1:{self.http_port}"

    def live(self) -> bool:
        """Whether the server is live."""
        return self._ok("/v2/health/live")

    def ready(self, model: str = "vlkv") -> bool:
        """Whether the model is ready."""
        return self._ok(f"/v2/models/{model}/ready")

    def wait(self, model: str | None = "vlkv", timeout: float = 60.0) -> None:
        """Waits until the model is ready (None: the server live). Raises `VlkvError` with the log's end otherwise."""
        end = monotonic() + timeout
        while not (self.live() if model is None else self.ready(model)):
            if self.process.poll() is not None or monotonic() > end:
                tail = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:])
                raise VlkvError(f"tritonserver is not ready: {tail}")
            sleep(0.05)

    def metrics(self) -> dict[str, float]:
        """The values of the metrics endpoint by name, summed over labels."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60) as reply:
            for line in reply.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
                    found[name] = found.get(name, 0.0) + float(value)
        return found

    def stop(self, kill_after: float | None = None) -> int:
        """Makes the server finish its running answers and exit; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.grace + 15 if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _ok(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False
