"""Threads that die in a real tritonserver: what they held fails with a message, and the next request is answered."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from serving.asking import WAIT, post

MORTAL = """
from pathlib import Path

from vlkv.scheduler.worker import Worker
from vlkv.serving.triton.exchange import Exchange
from vlkv.serving.triton.model import TritonPythonModel

BEFORE = {Worker: Worker._step, Exchange: Exchange._send_all}
PLACE = Path(__file__).parent


def dying(kind, name, file):
    real = getattr(kind, name)

    def run(self, *given):
        if (PLACE / file).exists():
            (PLACE / file).unlink()
            raise SystemError("a bug")
        return real(self, *given)

    setattr(kind, name, run)


dying(Worker, "_step", "scheduler")
dying(Exchange, "_wait", "exchange")
"""
"""The model as it is shipped; a file beside it kills the thread of that name."""


def test_a_dead_thread_is_replaced(installed, shipped, opened, tmp_path):
    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import Server

    folder = write_repository(Settings(str(shipped), slots=4, threads=1), shipped, tmp_path / "models")
    (folder / "1" / "model.py").write_text(MORTAL)
    body = {"prompt": "what is the type?", "max_tokens": 4, "policy": "full"}
    whole = opened.generate("what is the type?", policy="full", max_new_tokens=4).text
    with Server(tmp_path / "models", tmp_path / "log", grace=5) as server:
        server.wait(timeout=WAIT)
        for name, who in (("scheduler", "scheduler"), ("exchange", "sending thread")):
            (folder / "1" / name).touch()
            time.sleep(0.3)  # the sending thread meets it within a tenth
            found = [post(server, "generate", body) for _ in range(3)]
            if name == "scheduler":
                status, text = found.pop(0)
                assert status != 200
                assert "the scheduler has stopped by an error: a bug" in text
            assert [(status, json.loads(text)["text"]) for status, text in found] == [(200, whole)] * len(
                found
            )
            assert f"vlkv: the {who} had stopped; a new one begins" in server.log.read_text()
            assert server.ready()
        assert server.metrics()["vlkv_alive"] == 1
    assert server.process.returncode == 0


def test_instances_share_the_cores(installed, shipped, opened, tmp_path):
    import os
    import re

    from vlkv.ops.cores import usable_cores
    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import Server

    write_repository(Settings(str(shipped), slots=4, instances=2), shipped, tmp_path / "models")
    whole = opened.generate("what is the type?", max_new_tokens=4).text
    with Server(tmp_path / "models", tmp_path / "log", grace=5) as server:
        server.wait(timeout=WAIT)
        for _ in range(4):
            status, text = post(server, "generate", {"prompt": "what is the type?", "max_tokens": 4})
            assert (status, json.loads(text)["text"]) == (200, whole)
        said = re.findall(r"bytes, (\w+) threads", server.log.read_text())
        assert said == [str(max(1, usable_cores() // 2))] * 2
        cores = [len(os.sched_getaffinity(pid)) for pid in threads_of(server.process.pid)]
        assert min(cores) == len(os.sched_getaffinity(0)), "no thread is bound to a core"


def threads_of(server):
    """Threads of the model's processes, the server's children."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == server:
                yield from (int(task.name) for task in (stat.parent / "task").iterdir())
        except OSError:
            continue


def test_a_killed_model_process_is_started_anew(installed, shipped, tmp_path):
    """Triton leaves a decoupled model without a process; who started the server by vlkv gets it back."""
    import os
    import signal
    import subprocess
    import sys
    from types import SimpleNamespace

    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import free_port
    from vlkv.serving.triton.supervisor import stubs

    write_repository(Settings(str(shipped), slots=4, threads=1), shipped, tmp_path / "models")
    ports = [free_port() for _ in range(3)]
    server = SimpleNamespace(url=f"http://127.0.0.1:{ports[0]}")
    names = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    command = [
        sys.executable,
        "-m",
        "vlkv.serving.triton",
        str(tmp_path / "models"),
        *names,
        "--exit-timeout-secs=2",
    ]
    body = {"prompt": "what is the type?", "max_tokens": 4}

    def answered():
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            try:
                if (found := post(server, "generate", body))[0] == 200:
                    return found[1]
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError((tmp_path / "log").read_text()[-2000:])

    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            first = answered()
            (child,) = [
                int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ]
            (stub,) = stubs(child)
            time.sleep(1.2)  # it is seen every half second
            os.kill(stub, signal.SIGKILL)
            end = time.monotonic() + WAIT
            while "has died; the server starts anew" not in (tmp_path / "log").read_text():
                assert time.monotonic() < end
                time.sleep(0.1)
            assert answered() == first
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_a_log_that_no_one_reads_any_more_and_a_slow_client(shipped, tmp_path):
    """Standard error's reader goes away, as a full disk or a dead collector does; a client takes a byte at a time."""
    import re
    import socket
    import subprocess
    import sys
    import urllib.request

    pytest.importorskip("uvicorn", reason="uvicorn is not installed: make .venv/tested")
    command = [sys.executable, "-m", "vlkv.cli.main", "serve", str(shipped), "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--slots", "2"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            said = ""
            while not (found := re.search(r"at http://127.0.0.1:(\d+)/v1", said)):
                said += process.stderr.readline().decode()
            process.stderr.close()
            port, text = (
                int(found.group(1)),
                json.dumps({"prompt": "type?", "max_tokens": 200, "stream": True}),
            )
            with socket.create_connection(("127.0.0.1", port)) as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(text)}\r\n\r\n"
                slow.sendall(head.encode() + text.encode())
                assert slow.recv(1) == b"H"
                for path, data in (
                    ("/v1/completions", b'{"prompt": "type?", "max_tokens": 3}'),
                    ("/nope", None),
                ):
                    for _ in range(3):
                        url = f"http://127.0.0.1:{port}{path}"
                        try:
                            with urllib.request.urlopen(url, data, timeout=WAIT) as reply:
                                assert reply.status == 200
                        except urllib.error.HTTPError as error:
                            assert error.code == 404
                assert slow.recv(1) == b"T"
            end = time.monotonic() + WAIT
            while True:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
                    if "vlkv_slots_used 0.0" in reply.read().decode():
                        break
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_a_clock_that_jumps(opened, monkeypatch):
    """Deadlines and waits are by the monotonic clock: the time of day may be set while answers run."""
    from vlkv import Question

    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 1e7)
    with opened.scheduler(slots=2, memory=32 << 20) as scheduler:
        tickets = [scheduler.submit(Question("type?", max_new_tokens=4), deadline=WAIT) for _ in range(6)]
        assert {ticket.wait(WAIT).finish_reason for ticket in tickets} <= {"stop", "length"}
        assert all(0 <= ticket.ended - ticket.submitted < WAIT for ticket in tickets)
