"""Mixed requests at length: in process, at `vlkv serve`, at a real tritonserver. All comes back to where it was.

`make soak` runs SOAK_REQUESTS of them at each; in `make test` they are few. SOAK_SECONDS bounds each place's time.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter

import aiohttp
import numpy as np
import pytest

from serving.mixture import Held, chat, draw, family, held, triton
from vlkv import Question
from vlkv.errors import ServerFullError, VlkvError

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "60"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
AT_ONCE = 12
WAIT = 300
GROWTH_MIB = 48
"""Resident memory that allocators may keep after the first tenth of the requests, and pages of a larger picture."""


class Requests:
    """The same requests at every place: the seed is told, and taken from VLKV_SEED."""

    def __init__(self, seed: int) -> None:
        self._seed, self._lock, self._next = seed, threading.Lock(), 0
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.end = time.monotonic() + SECONDS

    def some(self, most):
        """Numbers up to `most`, shared by whoever takes them."""
        while True:
            with self._lock:
                if self._next >= most or time.monotonic() > self.end:
                    return
                self._next += 1
                number = self._next
            yield number, draw(np.random.default_rng([self._seed, number]))

    def tell(self, asked, outcome, wrong=None):
        with self._lock:
            self.outcomes[outcome] += 1
            if wrong is not None:
                self.failures.append(f"{asked.fate}, good {asked.good}, {asked.settings}: {wrong}")


def check(place, requests, before: Held, after: Held, pool=0):
    """Says the figures; what must hold of all places. `pool` threads are kept for later requests."""
    line = ", ".join(f"{count} {name}" for name, count in sorted(requests.outcomes.items()))
    done = sum(requests.outcomes.values())
    print(f"\n{place}: {done} requests: {line}; before {before}; after {after}")
    assert not requests.failures, f"{len(requests.failures)}: {requests.failures[:5]}"
    assert done >= min(REQUESTS, 30)
    assert after.threads <= before.threads + pool
    assert after.files <= before.files
    assert after.memory <= before.memory * 1.1 + GROWTH_MIB


def back(measure, before):
    """What is held once it has come back, or after a while."""
    end = time.monotonic() + 20
    while True:
        after = measure()
        over = after.threads <= before.threads and after.files <= before.files
        if over or time.monotonic() > end:
            return after
        time.sleep(0.2)


@pytest.fixture
def seed(rng):
    return int(rng.integers(2**31))


def test_in_process(opened, seed):
    with opened.scheduler(slots=4, memory=32 << 20, queue=32) as scheduler:

        def work(requests, most):
            for _, asked in requests.some(most):
                question = None
                try:
                    question = Question(asked.prompt, asked.pictures, **asked.settings)
                    deadline = 0.02 if asked.fate == "deadline" else None
                    ticket = scheduler.submit(question, deadline=deadline)
                    if asked.fate == "leave early":
                        ticket.cancel()
                    elif asked.fate in {"leave late", "slow"}:
                        with ticket:
                            next(iter(ticket), None)
                    elif asked.fate == "stream":
                        assert "".join(ticket) == ticket.result.text
                    result = ticket.wait(WAIT)
                    wrong = None
                    if asked.fate in {"read", "stream"} and result.finish_reason not in {"stop", "length"}:
                        wrong = f"ended by {result.finish_reason!r}"
                    requests.tell(asked, result.finish_reason, wrong)
                except ServerFullError:
                    requests.tell(asked, "full")
                except VlkvError as error:
                    requests.tell(asked, "refused", f"{error}" if asked.good else None)
                except Exception as error:
                    requests.tell(asked, "failed", f"{type(error).__name__}: {error}")

        def run(requests, most):
            threads = [threading.Thread(target=work, args=(requests, most)) for _ in range(AT_ONCE)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SECONDS + WAIT)
            assert not any(thread.is_alive() for thread in threads)

        run(Requests(seed + 1), max(20, REQUESTS // 10))
        before, requests = held([os.getpid()]), Requests(seed)
        run(requests, REQUESTS)
        after = back(lambda: held([os.getpid()]), before)
        stats = scheduler.stats()
        assert (stats.slots_used, stats.waiting, stats.cache_bytes, stats.pixel_bytes) == (0, 0, 0, 0)
        assert stats.submitted == sum(stats.finished.values()) + stats.failed
        assert stats.failed == 0 and scheduler.alive
        check("in process", requests, before, after)


async def ask(session, url, body, fate):
    """What came of a request: a word, and its text."""
    data = io.BytesIO(json.dumps(body).encode())
    async with session.post(url, data=data, headers={"Content-Type": "application/json"}) as reply:
        if reply.status != 200 or fate == "leave early":
            return str(reply.status), "" if fate == "leave early" else await reply.text()
        if fate == "leave late":
            await reply.content.readany()
            return "left", ""
        if fate == "slow":
            for _ in range(30):
                if not await reply.content.read(64):
                    break
                await asyncio.sleep(0.02)
            return "left", ""
        return "200", await reply.text()


def over_http(requests, most, url, body_of, stream_url=None):
    """Sends requests; a server's own error is a failure, a refusal of a good one too unless it is full."""

    async def work(session):
        for _, asked in requests.some(most):
            body = body_of(asked)
            target = stream_url if stream_url and body["stream"] else url
            try:
                word, text = await asyncio.wait_for(ask(session, target, body, asked.fate), WAIT)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                requests.tell(asked, "cut off", f"{type(error).__name__}: {error}")
                continue
            wrong = None
            refused = word not in {"200", "left"} or '"error"' in text
            if refused:
                word = "full" if "server is full" in text else "refused"
            if word == "500" or any(said in text for said in ("server failed", "has stopped", "Traceback")):
                wrong = text[:300]
            if word == "refused" and asked.good and asked.fate != "leave early":
                wrong = text[:300]
            requests.tell(asked, word, wrong)

    async def run():
        timeout = aiohttp.ClientTimeout(total=WAIT)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))

    asyncio.run(run())


def numbers(url):
    """Values of a metrics page by name, labels added up."""
    found = Counter()
    with urllib.request.urlopen(url, timeout=60) as reply:
        for line in reply.read().decode().splitlines():
            if line and not line.startswith("#"):
                found[re.split(r"[{ ]", line)[0]] += float(line.rsplit(" ", 1)[1])
    return found


def emptied(url):
    """Metrics once nothing runs or waits."""
    end = time.monotonic() + WAIT
    while True:
        found = numbers(url)
        busy = [found[f"vlkv_{name}"] for name in ("slots_used", "waiting", "cache_bytes", "pixel_bytes")]
        ended = found["vlkv_finished_total"] + found["vlkv_failed_total"]
        if not any(busy) and ended == found["vlkv_submitted_total"]:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def test_at_vlkv_serve(shipped, seed, tmp_path):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: make .venv/tested")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "vlkv.cli.main", "serve", str(shipped), "--port", "0", "--threads", "1"]
    command += ["--slots", "4", "--memory", "32MiB", "--timeout", "5"]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            end = time.monotonic() + WAIT
            while not (found := re.search(r"at (http://\S+)/v1", log.read_text())):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            url = found.group(1)
            path = f"{url}/v1/chat/completions"
            over_http(Requests(seed + 1), max(20, REQUESTS // 10), path, chat)
            emptied(f"{url}/metrics")
            before, requests = held([process.pid]), Requests(seed)
            over_http(requests, REQUESTS, path, chat)
            after_numbers = emptied(f"{url}/metrics")
            after = back(lambda: held([process.pid]), before)
            assert after_numbers["vlkv_failed_total"] == 0
            check("vlkv serve", requests, before, after, pool=AT_ONCE + 4)
            with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
                assert reply.status == 200
            assert "Traceback" not in log.read_text(), log.read_text()[-2000:]
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_at_tritonserver(installed, shipped, seed, tmp_path):
    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import Server

    settings = Settings(str(shipped), slots=4, memory="32MiB", threads=1)
    write_repository(settings, shipped, tmp_path / "models")
    with Server(tmp_path / "models", tmp_path / "log", grace=5) as server:
        server.wait(timeout=WAIT)
        base = f"{server.url}/v2/models/vlkv"
        metrics = f"http://127.0.0.1:{server.metrics_port}/metrics"
        pids = family(server.process.pid)
        over_http(
            Requests(seed + 1), max(20, REQUESTS // 10), f"{base}/generate", triton, f"{base}/generate_stream"
        )
        emptied(metrics)
        before, requests = held(pids), Requests(seed)
        over_http(requests, REQUESTS, f"{base}/generate", triton, f"{base}/generate_stream")
        found = emptied(metrics)
        after = back(lambda: held(pids), before)
        assert found["vlkv_failed_total"] == 0 and found["vlkv_alive"] == 1
        check("tritonserver", requests, before, after)
        assert server.ready()
        log = server.log.read_text()
        said = re.findall(r"^E\d.*vlkv:.*", log, re.MULTILINE)
        assert not said, said[:3]
    assert server.process.returncode == 0
