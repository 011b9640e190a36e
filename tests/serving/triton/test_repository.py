"""`vlkv triton` and what surrounds the server: repository, sizes, inputs, figures of load tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vlkv.cli.main import main
from vlkv.errors import MemoryLimitError, PromptError, SamplingError, VlkvError
from vlkv.serving.size import parse_size
from vlkv.serving.triton.inputs import to_question
from vlkv.serving.triton.repository import MODEL, Settings, config
from vlkv.serving.triton.server import find
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings as BuildSettings

SHOWN = Path(__file__).parents[3] / "examples" / "triton" / "model_repository" / "vlkv"


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["triton", *map(str, arguments)])
    return ended.value.code


def test_the_shown_repository_is_what_is_written(shipped, graphs_of, tmp_path, capsys):
    assert (SHOWN / "config.pbtxt").read_text() == config(Settings("/engines/llava"))
    assert run(shipped, "-o", tmp_path / "models", "--engine-path", "/engines/llava") == 0
    for name in ("config.pbtxt", "1/model.py"):
        assert (tmp_path / "models" / "vlkv" / name).read_text() == (SHOWN / name).read_text()
    engine = tmp_path / "engine"
    build_engine(graphs_of("llama"), engine, settings=BuildSettings(dtype="float16"))
    assert run(engine, "-o", tmp_path / "models", "--slots", 3, "--gpus", "0,2", "--instances", 2) == 0
    text = (tmp_path / "models" / "vlkv" / "config.pbtxt").read_text()
    assert 'key: "slots" value: { string_value: "3" }' in text
    assert "count: 2 kind: KIND_GPU gpus: [ 0, 2 ]" in text
    assert str(engine) in text
    assert "plugin" not in text
    assert 'key: "plugin" value: { string_value: "/lib/a.so" }' in config(Settings("/e", plugin="/lib/a.so"))
    capsys.readouterr()
    for gpus, folder, words in (
        ("0,0", engine, "gpus 0,0: device numbers are from 0, and each is named once"),
        ("-1", engine, "gpus -1: device numbers are from 0"),
        ("0", shipped, "--gpus needs an engine for GPUs: build it with --dtype float16"),
    ):
        assert run(folder, "-o", tmp_path / "models", "--gpus", gpus) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slots", "0"], "slots 0 is under 1"),
        (["--memory", "lots"], "memory 'lots' is not a size"),
        (["--memory", "20K"], "does not hold one token's prefill"),
        (["--policy", "none"], "unknown policy 'none'"),
        (["--queue", "0"], "queue 0 is under 1"),
        (["--chunk", "0"], "chunk 0 is under 1"),
        (["--client-requests", "0"], "client_requests 0 is under 1"),
        (["--client-tokens", "-1"], "client_tokens -1 is under 1"),
        (["--client", "a b", "--client-tokens", "9"], "client parameter 'a b' may have"),
        (["--capacity", "0"], "capacity 0 is under 1"),
        (["--prompt-tokens", "0"], "prompt_tokens 0 is under 1"),
        (["--memory", "1MiB"], "no request of a picture and 64 tokens of text could ever run"),
        (["--capacity", "99999999"], "does not hold a lane of 99999999 tokens"),
        (["--name", "a/b"], "model name 'a/b'"),
        (["--gpus", "a"], "gpus 'a'"),
    ],
)
def test_wrong_settings_are_one_line_and_leave_nothing(shipped, tmp_path, capsys, arguments, words):
    assert run(shipped, "-o", tmp_path / "models", *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_limits_of_clients_are_written_where_there_are_some(shipped, tmp_path):
    assert run(shipped, "-o", tmp_path / "one", "--client-tokens", 600, "--client", "x-client") == 0
    text = (tmp_path / "one" / "vlkv" / "config.pbtxt").read_text()
    for name, value in (("client", "x-client"), ("client_tokens", "600")):
        assert f'key: "{name}" value: {{ string_value: "{value}" }}' in text
    assert "client_requests" not in text
    assert "client" not in config(Settings("/e"))


def test_what_a_repository_allows_is_told_and_its_sizes_can_be_set(shipped, tmp_path, capsys):
    sizes = ["--prompt-tokens", 300, "--capacity", 290, "--chunk", 64, "--slots", 3, "--memory", "32MiB"]
    assert run(shipped, "-o", tmp_path / "models", *sizes) == 0
    said = capsys.readouterr().err
    assert "3 answers at once at most, caches to 32 MiB" in said
    assert "prompts to 300 tokens" in said
    text = (tmp_path / "models" / "vlkv" / "config.pbtxt").read_text()
    for name, value in (("prompt_tokens", 300), ("capacity", 290), ("chunk", 64)):
        assert f'key: "{name}" value: {{ string_value: "{value}" }}' in text


def test_no_engine_and_a_foreign_folder(shipped, tmp_path, capsys):
    assert run(tmp_path / "none", "-o", tmp_path / "models") == 2
    assert "no such directory" in capsys.readouterr().err
    (tmp_path / "models" / "vlkv").mkdir(parents=True)
    (tmp_path / "models" / "vlkv" / "notes").write_text("mine")
    assert run(shipped, "-o", tmp_path / "models") == 2
    assert (tmp_path / "models" / "vlkv" / "notes").read_text() == "mine"


def test_names_are_quoted_for_protobuf():
    assert r'string_value: "/a \"b\" \\c"' in config(Settings('/a "b" \\c'))
    assert MODEL.startswith('"""')


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("2GiB", 2 << 30), ("512M", 512 << 20), ("1.5k", 1536)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 apple", "1e9", "GiB", "9" * 30])
def test_texts_that_are_no_sizes(text):
    with pytest.raises(MemoryLimitError):
        parse_size(text)


def texts(*values):
    return np.array([value.encode() for value in values], np.object_)


def test_tensors_to_a_question():
    tensors = {
        "prompt": texts("a b"),
        "images": np.array([b"\x89PNG", b"iVBORw=="], np.object_),
        "budget": np.array([0.1]),
        "max_tokens": np.array([7], np.int32),
        "prune": texts("diverse:0.5"),
        "recall": np.array([0.2]),
        "stop": texts("x", "y"),
        "stream": np.array([True]),
    }
    question, stream = to_question(tensors, "h2o", 100)
    assert stream
    assert (question.prompt, question.images, question.policy) == ("a b", (b"\x89PNG", b"\x89PNG"[:4]), "h2o")
    assert (question.budget, question.max_new_tokens, question.stop) == (0.1, 7, ("x", "y"))
    assert question.prune == "diverse:0.5" and question.recall == 0.2
    assert to_question({"prompt": texts("a")}, "full", 10)[1] is False
    with pytest.raises(PromptError, match="11 characters"):
        to_question({"prompt": texts("a" * 11)}, "full", 10)
    with pytest.raises(SamplingError, match="2 values"):
        to_question({"prompt": texts("a"), "seed": np.array([1, 2])}, "full", 10)


def test_load_prints_a_table_or_json(server, capsys):
    command = [server.url, "--requests", "6", "--concurrency", "3", "--prompt", "type?", "--max-tokens", "4"]
    with pytest.raises(SystemExit) as ended:
        main(["load", *command])
    assert ended.value.code == 0
    assert "6 of 6 answered" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["load", *command, "--rate", "100", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["answered"], found["errors"]) == (6, {})
    assert set(found["ttft"]) == {"p50", "p90", "p95", "p99"}
    with pytest.raises(SystemExit) as ended:
        main(["load", "http://127.0.0.1:9", "--requests", "2"])
    assert ended.value.code == 2
    assert "none of 2 requests was answered" in capsys.readouterr().err


def test_no_server_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("vlkv.serving.triton.server.VENV", tmp_path)
    monkeypatch.delenv("VLKV_TRITONSERVER", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(VlkvError, match=r"no tritonserver: `make \.venv/served` installs one"):
        find()
