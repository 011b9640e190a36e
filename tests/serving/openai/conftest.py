"""A real `vlkv serve` process with the shipped checkpoint's engine, and the `openai` package's own client."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from models import tiny

openai = pytest.importorskip("openai", reason="openai is not installed: make .venv/tested")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: make .venv/tested")

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny_vlm"


class Served:
    """A server process that listens at `url`."""

    def __init__(self, engine: Path, log: Path, *arguments: str, patience: float = 120) -> None:
        command = [sys.executable, "-m", "vlkv.cli.main", "serve", str(engine), "--port", "0", *arguments]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out, stdout=out)
        end = time.monotonic() + patience
        while not (found := re.search(r"serving .* at (http://\S+)/v1", log.read_text())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise AssertionError(log.read_text())
            time.sleep(0.05)
        self.url, self.log = found.group(1), log

    def client(self, key: str = "x") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def metrics(self) -> dict[str, float]:
        found = {}
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as reply:
            for line in reply.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    found[name] = float(value)
        return found

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(120)


@pytest.fixture(scope="session")
def served(shipped, tmp_path_factory):
    """Runs a server of 4 lanes that requires no key."""
    running = Served(
        shipped,
        tmp_path_factory.mktemp("openai") / "log",
        "--threads",
        "1",
        "--slots",
        "4",
        "--memory",
        "32MiB",
    )
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture(scope="session")
def writer(built_of, tmp_path_factory):
    """Runs a server whose model writes any text: its tokens are bytes."""
    log = tmp_path_factory.mktemp("writer") / "log"
    running = Served(built_of(tiny.BYTES), log, "--threads", "1", "--slots", "4", "--memory", "32MiB")
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture(scope="session")
def client(served):
    return served.client()


@pytest.fixture(scope="session")
def uri(picture):
    """The shipped picture as a data URI."""
    import base64

    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
