"""`vlkv bench` on a whole checkpoint, alone and together with transformers in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from vlkv.bench import environments, peers, probe
from vlkv.bench.environments import make_environment, peer_file
from vlkv.bench.peers import PEERS, PeerArm
from vlkv.bench.prompts import make_prompts
from vlkv.bench.settings import Budget
from vlkv.bench.timing import EngineArm
from vlkv.errors import BenchError


@pytest.fixture(autouse=True)
def one_pass(monkeypatch):
    monkeypatch.setattr(probe, "PASSES", 1)


SMALL = "--prompt-tokens", "60", "--new-tokens", 5, "--repeat", 1, "--threads", 1


def test_the_whole_command(vlkv, built_of, tmp_path):
    out = tmp_path / "deep" / "out"
    code, text, err = vlkv(
        "bench", built_of("llama"), *SMALL, "--batch", "1,2", "--budget", "1,0.2,9t", "-o", out
    )
    assert (code, err) == (0, "")
    assert text == (out / "bench.md").read_text()
    assert "full cache ms/token | 20% kept ms/token | 9 kept ms/token" in text
    found = msgspec.json.decode((out / "bench.json").read_bytes())
    assert len(found["rows"]) == 2 * 3
    assert len(found["amdahl"]) == 2 * 2
    assert all(line["over_floor"] > 0 for line in found["rows"])
    assert found["environment"]["cores"] >= 1
    for name in ("token.png", "first_token.png", "whole.png", "cache.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(out.iterdir())) == 6
    assert [line["arm"] for line in found["fidelity"]] == ["full cache", "20% kept", "9 kept"]
    assert found["fidelity"][0]["agreement"] == 1
    assert 1 < found["fidelity"][0]["perplexity"] < found["fidelity"][2]["perplexity"]


def test_json_is_one_object(vlkv, built_of):
    code, text, _ = vlkv("bench", built_of("llama"), *SMALL, "--budget", "1", "--json")
    assert code == 0
    found = msgspec.json.decode(text)
    assert found["against_full"] == []
    assert [line["prompt_tokens"] for line in found["rows"]] == [60]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt-tokens", "many"), "prompt-tokens 'many' is not a number of tokens"),
        (("--batch", "0"), "batch '0' is not a number from 1"),
        (("--budget", "2"), "budget 2.0 is outside (0, 1]"),
        (("--policy", "best"), "unknown policy 'best'"),
        (("--prompt-tokens", "30"), "a prompt of 30 tokens is too short for a picture"),
        (("--prompt-tokens", "9000k"), "positions"),
        (("--peers", "hf"), "need --checkpoint"),
        (
            ("--peers", "vllm"),
            "peers 'vllm' is unknown; known: hf, kvpress, openvino, llamacpp, hf-eager, hf-sdpa",
        ),
        (("--checkpoint", "nowhere"), "checkpoint nowhere holds no config.json"),
        (("--new-tokens", "1"), "new-tokens '1' is too few; at least 2"),
        (("--new-tokens", "9,x"), "new-tokens 'x' is not a number of tokens"),
        (("--also", "int8"), "also 'int8' is not NAME=ENGINE"),
        (("--prompt-tokens", "60", "--new-tokens", "5", "--also", "a=nowhere"), "nowhere"),
    ],
)
def test_wrong_use_is_one_line(vlkv, built_of, options, said):
    code, text, err = vlkv("bench", built_of("llama"), *options)
    assert (code, text) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_told_first(vlkv, built_of, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = vlkv("bench", built_of("llama"), "-o", tmp_path / "file")
    assert code == 2
    assert "file" in err


def test_another_engine_beside(vlkv, built_of, checkpoint_of, tmp_path):
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.engine import build_engine

    export_checkpoint(checkpoint_of("llama"), tmp_path / "graphs")
    build_engine(tmp_path / "graphs", tmp_path / "int8", weights="int8")
    options = ("--budget", "1,0.2", "--also", f"int8={tmp_path / 'int8'}", "--json")
    code, text, err = vlkv("bench", built_of("llama"), *SMALL, "--new-tokens", "5,3", *options)
    assert (code, err) == (0, "")
    found = msgspec.json.decode(text)
    labels = ["full cache", "20% kept", "int8, full cache", "int8, 20% kept"]
    assert [line["arm"] for line in found["rows"]] == labels * 2
    assert [line["new_tokens"] for line in found["rows"]] == [5] * 4 + [3] * 4
    floors = {line["arm"]: line["floor_ms"] * line["bandwidth"] for line in found["rows"][:4]}
    assert floors["int8, full cache"] < 0.6 * floors["full cache"]
    pairs = [(line["arm"], line["against"]) for line in found["against_full"][:4]]
    assert pairs == [
        (labels[1], labels[0]),
        (labels[2], labels[0]),
        (labels[3], labels[2]),
        (labels[3], labels[0]),
    ]
    assert [line["arm"] for line in found["amdahl"][:2]] == [labels[1], labels[3]]
    worth = {line["arm"]: line["perplexity"] for line in found["fidelity"]}
    assert list(worth) == labels
    assert worth["int8, full cache"] != worth["full cache"]
    assert worth["int8, full cache"] == pytest.approx(worth["full cache"], rel=0.1)
    code, _, err = vlkv("bench", built_of("llama"), *SMALL, "--also", f"other={built_of('mistral')}")
    assert code == 2
    assert "has another model than" in err


def test_a_peer_leaves_memory_to_others(tmp_path, engine_of):
    program = (
        f"import sys; sys.path.insert(0, {str(peer_file('worker.py').parent)!r})\n"
        "import worker, numpy\n"
        "worker.RESERVE = 1 << 60\n"
        "worker.serve(lambda settings: numpy.empty(settings['bytes'], numpy.int8), ('numpy',))\n"
    )
    image = engine_of("llama").manifest.image
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    command = [sys.executable, "-c", program]
    arm = PeerArm("x", command, tmp_path / "log", {"bytes": 1 << 20}, image, str)
    assert arm.versions["numpy"]
    arm.close()
    with pytest.raises(BenchError, match="x: MemoryError"):
        PeerArm("x", command, tmp_path / "log", {"bytes": free * 3 // 4}, image, str)


@pytest.fixture
def peer_of(engine_of, checkpoint_of, tmp_path):
    """Returns a function that starts the transformers of this environment as a peer."""
    started = []

    def start(mode):
        engine = engine_of("llama")
        load = {"checkpoint": str(checkpoint_of("llama")), "threads": 1, "mode": mode}
        command = [sys.executable, str(peer_file("torch_worker.py"))]
        arm = PeerArm(mode, command, tmp_path / "log", load, engine.manifest.image, engine.decode)
        started.append(arm)
        return arm

    yield start
    for arm in started:
        arm.close()


def test_transformers_as_a_peer_gives_the_same_tokens(peer_of, engine_of, checkpoint_of):
    engine = engine_of("llama")
    peer = peer_of("eager")
    assert peer.versions["transformers"]
    asked = make_prompts(engine.manifest, 90, 2)
    theirs = peer.run(asked, 6)
    ours = EngineArm(engine, Budget(1.0), "full").run(asked, 6)
    assert theirs.tokens == ours.tokens
    assert len(theirs.steps) == 5
    assert 0 < theirs.first < theirs.whole
    text = engine.manifest.text
    # the last token was never run: 5 of 6 new ones are in the cache
    assert theirs.cache_bytes == 2 * text.layers * text.kv_heads * text.head_dim * 4 * (90 + 5) * 2
    assert theirs.peak_bytes > 50 << 20


FAILS = """
import sys
sys.path.insert(0, {!r})
from worker import serve
print("libraries talk")
serve(lambda settings: 1 / 0, ())
"""


def test_a_peer_that_cannot_is_one_line(tmp_path, engine_of):
    image = engine_of("llama").manifest.image
    for program, said in (
        (FAILS.format(str(peer_file("worker.py").parent)), "x: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('gone')", "x ended: exit code 1, gone"),
        ("input(); print('hello')", "x answered"),
        ('input(); print(\'{"error": "no wheel"}\')', "x: no wheel"),
    ):
        with pytest.raises(BenchError, match=said):
            PeerArm("x", [sys.executable, "-c", program], tmp_path / "log", {}, image, str)
    with pytest.raises(BenchError, match="does not start"):
        PeerArm("x", [str(tmp_path / "nothing")], tmp_path / "log", {}, image, str)


def test_a_silent_peer_is_given_up(monkeypatch, tmp_path, engine_of):
    monkeypatch.setattr(peers, "PATIENCE", 0.2)
    with pytest.raises(BenchError, match="did not answer"):
        PeerArm(
            "x",
            [sys.executable, "-c", "import time; time.sleep(60)"],
            tmp_path / "log",
            {},
            engine_of("llama").manifest.image,
            str,
        )


def test_environments_are_made_once_and_whole(monkeypatch, tmp_path):
    told = []
    wanted = tmp_path / "nothing.txt"
    wanted.write_text("# no packages\n")
    python = make_environment(tmp_path / "made", wanted, told.append)
    assert python.exists()
    assert make_environment(tmp_path / "made", wanted, told.append) == python
    assert told == ["making an environment for nothing"]
    with pytest.raises(BenchError, match=r"-m pip install failed: .*no-such-wheel"):
        environments._call([str(python), "-m", "pip", "install", f"{tmp_path}/no-such-wheel.whl"])
    wanted.write_text("# others\n")
    monkeypatch.setattr(environments.sys, "executable", "false")
    with pytest.raises(BenchError, match=r"-m venv .* failed: no output"):
        make_environment(tmp_path / "made", wanted, told.append)
    assert not (tmp_path / "made").exists()


def test_every_peer_has_its_files():
    for peer in (peer for group in PEERS.values() for peer in group):
        assert peer_file(peer.program).is_file()
        assert peer_file(f"{peer.environment}.txt").is_file()
