"""Threads that die in a real tritonserver: what they held fails with a message, and the next request is answered."""

from __future__ import annotations

import json
import time

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
    from pathlib import Path

    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == server:
                yield from (int(task.name) for task in (stat.parent / "task").iterdir())
        except OSError:
            continue
