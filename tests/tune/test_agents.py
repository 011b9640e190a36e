"""Agents with a transcript that is written by hand (`data/dot.jsonl`), and with an endpoint that is not a model."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tune.candidates import WRONG
from vlkv.errors import TuneError
from vlkv.tune.agents import Agents, Transcript
from vlkv.tune.api import Budget, tune_one
from vlkv.tune.endpoint import Reply, endpoint
from vlkv.tune.harness import Harness

EXAMPLES = Path(__file__).parents[2] / "examples" / "tune"
DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc") or platform.machine() != "x86_64",
    reason="needs gcc and Linux on x86-64",
)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()[1:]]


def test_a_transcript_written_by_hand(tmp_path: Path):
    harness = Harness.load(EXAMPLES / "dot.py")
    asked: list[str] = []
    answers = Transcript(DATA / "dot.jsonl")

    def ask(prompt: str, agent: str) -> Reply:
        asked.append(prompt)
        return answers(prompt, agent)

    agents = Agents(ask, harness, "a processor", 7)
    report = tune_one(EXAMPLES / "dot.c", harness, tmp_path / "out", [agents], Budget(calls=7))
    found = records(tmp_path / "out")
    assert [r["agent"] for r in found] == ["tester", "guide", "source", "source", "source", "source", "guide"]
    assert found[0]["probes"] == [{"n": 0}, {"n": 33}]
    assert (found[1]["chosen"], found[6]["named"]) == ("source", False)
    assert [r.get("gate") for r in found[3:5]] == ["inputs", "compile"]
    assert found[5]["correct"] and found[5]["ratio"]["value"] < 1.5
    assert "no fenced block" in asked[3]
    assert "Your last version is wrong" in asked[4] and "SIGSEGV" in asked[4]
    assert not any("20000" in prompt for prompt in asked), "held-out sizes are not shown"
    assert report.calls == 7 and report.tokens > 700 and report.correct == 1
    assert report.by_level["source"]["calls"] == 4 and report.by_level["source"]["candidates"] == 3

    # the next run goes on, in the transcript too: one call only, by the agent whose turn it is
    again = Agents(Transcript(DATA / "dot.jsonl"), harness, "a processor", 8)
    report = tune_one(EXAMPLES / "dot.c", harness, tmp_path / "out", [again], Budget(calls=8))
    found = records(tmp_path / "out")
    assert len(found) == 8 and found[7]["agent"] == found[6]["chosen"] and found[7]["gate"] == "compile"
    assert "int main()" in found[7]["answer"]
    assert report.calls == 8 and report.admitted == sum(bool(r.get("admitted")) for r in found)


def test_wrong_answers_are_never_admitted(tmp_path: Path):
    harness = Harness.load(EXAMPLES / "saxpy.py")
    texts = [
        WRONG[name] for name in ("only even sizes", "only small sizes", "prints", "keeps state", "prose")
    ]
    answers = iter(["nonsense", "source", *(f"```c\n{text}\n```" for text in texts[:4]), "source", texts[4]])
    agents = Agents(lambda *_: Reply(next(answers), 1, 1, 0.0), harness, "a processor")
    report = tune_one(EXAMPLES / "saxpy.c", harness, tmp_path, [agents], Budget(calls=8))
    assert (report.correct, report.admitted, report.speedup) == (0, 0, 1.0)
    assert json.loads((tmp_path / "best.json").read_text())["best"]["origin"] == "source"


def test_a_short_transcript_says_so(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(TuneError, match="only 0 answers"):
        Transcript(tmp_path / "t.jsonl")("", "source")


class Answers(BaseHTTPRequestHandler):
    """An endpoint that answers each question with the same text."""

    def do_POST(self) -> None:
        self.server.keys.append(self.headers["Authorization"])  # type: ignore[attr-defined]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = {
            "id": "1", "object": "chat.completion", "created": 0, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "source"}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
        }  # fmt: skip
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return


def test_an_endpoint_is_asked_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vlkv):
    pytest.importorskip("openai")
    monkeypatch.setenv("VLKV_TUNE_KEY", "secret")
    server = HTTPServer(("127.0.0.1", 0), Answers)
    server.keys = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        words = ("--endpoint", f"http://127.0.0.1:{server.server_port}/v1", "--model", "m", "--json")
        source = ("--source", EXAMPLES / "dot.c", "--calls", 3, "-o", tmp_path / "out")
        code, text, err = vlkv("tune", *source, *words)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert code == 0, err
    report = json.loads(text)
    assert (report["calls"], report["tokens"], report["admitted"]) == (3, 18, 0)
    assert server.keys == ["Bearer secret"] * 3  # type: ignore[attr-defined]
    assert "secret" not in (tmp_path / "out" / "ledger.jsonl").read_text()


def test_bad_endpoints_are_one_line():
    pytest.importorskip("openai")
    with pytest.raises(TuneError, match="http"):
        endpoint("ftp://x", "m")
    with pytest.raises(TuneError, match=r"127\.0\.0\.1:9"):
        endpoint("http://127.0.0.1:9/v1", "m", seconds=1)("", "source")
