"""Every bad input gives exit code 2 and one line on standard error, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from vlkv.cli import console
from vlkv.cli.main import app, main
from vlkv.cli.paths import path

PROMPT = "what is the total"


@pytest.fixture(autouse=True)
def usual_verbosity():
    console.VERBOSITY.level = 0
    yield
    console.VERBOSITY.level = 0


@pytest.fixture
def refused(capfd, tmp_path, monkeypatch):
    """Runs a command that must fail in a folder of its own, and returns the line on standard error."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        before = listed(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert ended.value.code == 2, err
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert err.startswith("vlkv: ")
        assert listed(tmp_path) == before
        return err

    return run


def listed(folder: Path) -> dict[str, int]:
    """Returns every file and folder below, with its size."""
    return {
        str(path.relative_to(folder)): path.lstat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }


def png(width: int, height: int) -> bytes:
    """Returns a PNG file with a header and the first pixels only."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT" + zlib.compress(b"")


@pytest.fixture
def checkpoint(checkpoint_of, tmp_path):
    return Path(shutil.copytree(checkpoint_of("llama"), tmp_path / "checkpoint"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["export", "", "-o", "x"], "'checkpoint'"),
        (["export", "x", "-o", ""], "'-o' / '--output'"),
        (["build", "x", "--output="], "'-o' / '--output'"),
        (["adopt", "", "-o", "x"], "'folder'"),
        (["run", "", "--prompt", "x"], "'engine'"),
        (["run", "x", "--image", "a.png", "--image", ""], "'--image'"),
        (["run", "x", "--video", ""], "'--video'"),
        (["run", "x", "--prompt-file", ""], "'--prompt-file'"),
        (["run", "x", "--tuned", ""], "'--tuned'"),
        (["inspect", "x", "-o", ""], "'-o' / '--output'"),
        (["triton", "x", "-o", ""], "'-o' / '--output'"),
        (["eval", "x", "--data", ""], "'--data'"),
        (["eval", "x", "-o", ""], "'-o' / '--output'"),
        (["bench", "x", "-o", ""], "'-o' / '--output'"),
        (["tune", "x", "-o", ""], "'-o' / '--output'"),
        (["load", "x", "--image", ""], "'--image'"),
        (["load", "x", "--trace", ""], "'--trace'"),
        (["serve", ""], "'engine'"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(refused, arguments, name):
    assert f"{name}: the path is empty; . is the current folder" in refused(*arguments)


def test_every_path_of_a_command_is_checked(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = [command.callback for command in app.registered_commands]
    assert len(commands) > 10
    for command in commands:
        for name, hint in get_type_hints(command, include_extras=True).items():
            kinds = {hint.__origin__, *get_args(hint.__origin__)} if hasattr(hint, "__metadata__") else {hint}
            if kinds & {Path, list[Path]}:
                assert hint.__metadata__[0].parser is path, (command.__name__, name)


def test_export_no_folder(refused):
    assert "does not exist" in refused("export", "nowhere", "-o", "graphs")


def test_export_a_file(refused, pictures):
    assert "is not a folder" in refused("export", pictures[0], "-o", "graphs")


def test_export_no_config(refused, checkpoint):
    (checkpoint / "config.json").unlink()
    assert "has no config.json" in refused("export", checkpoint, "-o", "graphs")


def test_export_unsupported_architecture(refused, checkpoint):
    edit(checkpoint / "config.json", architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl")
    line = refused("export", checkpoint, "-o", "graphs")
    assert "Qwen2VLForConditionalGeneration" in line
    assert "supported: LlavaForConditionalGeneration" in line


def test_export_truncated_weights(refused, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in refused("export", checkpoint, "-o", "graphs")


def test_export_missing_and_misshaped_weights(refused, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    edit(checkpoint / "config.json", text_config=config["text_config"] | {"num_hidden_layers": 4})
    assert "tensors are missing" in refused("export", checkpoint, "-o", "graphs")
    edit(checkpoint / "config.json", text_config=config["text_config"] | {"intermediate_size": 96})
    assert "has shape [112, 64]" in refused("export", checkpoint, "-o", "graphs")


def test_export_no_weights(refused, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert "has neither model.safetensors" in refused("export", checkpoint, "-o", "graphs")


def test_export_onto_something_else(refused, checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "holds no vlkv manifest: not replaced" in refused("export", checkpoint, "-o", "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert "exists and is not a directory" in refused("export", checkpoint, "-o", "mine/thesis.txt")


def test_build_onto_something_else(refused, graphs_of, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "not replaced" in refused("build", graphs_of("llama"), "-o", "mine")


def test_build_unknown_backend(refused, graphs_of):
    line = refused("build", graphs_of("llama"), "-o", "engine", "--backend", "cuda")
    assert "unknown backend 'cuda'; known: onnxruntime" in line


def test_build_unknown_operators(refused, graphs_of):
    line = refused("build", graphs_of("llama"), "-o", "engine", "--operators", "fast")
    assert "known: native, functions" in line


def test_build_of_no_graphs(refused, built_of, checkpoint):
    assert "no such directory" in refused("build", "nowhere", "-o", "engine")
    assert "holds no manifest.json" in refused("build", checkpoint, "-o", "engine")
    assert "holds an engine" in refused("build", built_of("llama"), "-o", "engine")


def test_build_with_a_missing_file(refused, graphs_of, tmp_path):
    graphs = Path(shutil.copytree(graphs_of("llama"), tmp_path / "graphs"))
    (graphs / "vision.onnx").unlink()
    assert "vision.onnx: missing" in refused("build", graphs, "-o", "engine")


def ask(refused, engine, *options, prompt=PROMPT):
    return refused("run", engine, "--prompt", prompt, *options)


def test_run_no_engine(refused, graphs_of, checkpoint):
    assert "no such directory" in ask(refused, "nowhere")
    assert "holds no manifest.json" in ask(refused, checkpoint)
    assert "build an engine from them with `vlkv build" in ask(refused, graphs_of("llama"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.png", None, "absent.png: no such file"),
        ("text.png", b"a letter, not a picture", "text.png: not a picture"),
        ("empty.png", b"", "empty.png: not a picture"),
        ("large.png", png(10_001, 10_000), "10001 x 10000 picture has 100.01 megapixels, the limit is 100"),
        ("huge.png", png(60_000, 60_000), "megapixels, the limit is 100"),
        ("header.png", png(10, 10), "damaged or truncated"),
    ],
    ids=["absent", "text", "empty", "large", "huge", "header"],
)
def test_run_bad_pictures(refused, built_of, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert words in ask(refused, built_of("llama"), "--image", name)


def test_run_truncated_picture(refused, built_of, pictures, tmp_path):
    data = pictures[0].read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    assert "half.png: damaged or truncated" in ask(refused, built_of("llama"), "--image", "half.png")


def test_run_a_folder_as_picture(refused, built_of, tmp_path):
    assert "not a file" in ask(refused, built_of("llama"), "--image", tmp_path)


def test_run_numbers_of_pictures_and_placeholders(refused, built_of, pictures):
    line = ask(refused, built_of("llama"), "--image", pictures[0], prompt="<image> and <image>")
    assert "prompt has 2 <image> for 1 given picture" in line
    assert "1 <image> for 0 given pictures" in ask(refused, built_of("llama"), prompt="<image> what")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_run_empty_prompt(refused, built_of, prompt):
    assert "empty" in ask(refused, built_of("llama"), prompt=prompt)


def test_run_prompt_beyond_the_positions(refused, built_of):
    assert "the model has 512 positions" in ask(refused, built_of("llama"), prompt="w0 " * 600)


@pytest.mark.parametrize("budget", ["0", "-1", "2", "nan", "inf"])
def test_run_budget_outside(refused, built_of, budget):
    line = ask(refused, built_of("llama"), "--budget", budget)
    assert "is outside (0, 1]" in line


def test_run_budget_that_is_no_number(refused, built_of):
    assert "--budget" in ask(refused, built_of("llama"), "--budget", "a lot")


def test_run_unknown_policy_lists_the_known(refused, built_of):
    assert "unknown policy 'lru'; known: full, vl-cache, elastic" in ask(
        refused, built_of("llama"), "--policy", "lru"
    )


@pytest.mark.parametrize(
    "option",
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-k", "-2"),
        ("--max-new-tokens", "0"),
        ("--seed", "-1"),
    ],
)
def test_run_sampling_out_of_range(refused, built_of, option):
    assert option[0].removeprefix("--").replace("-", "_") in ask(refused, built_of("llama"), *option)


@pytest.fixture
def engine(built_of, tmp_path):
    return Path(shutil.copytree(built_of("llama"), tmp_path / "engine"))


def test_run_another_format_version(refused, engine):
    edit(engine / "manifest.json", format_version=7)
    line = ask(refused, engine)
    assert "format version 7" in line
    assert "reads 1 and 2" in line


@pytest.mark.parametrize("file", ["decoder.onnx", "vision.onnx", "tokenizer.json", "model.safetensors"])
def test_run_missing_file(refused, engine, file):
    (engine / file).unlink()
    assert f"{file}: missing" in ask(refused, engine)


@pytest.mark.parametrize("file", ["decoder.onnx", "tokenizer.json", "model.safetensors"])
def test_run_changed_file(refused, engine, file):
    data = bytearray((engine / file).read_bytes())
    data[len(data) // 2] ^= 1
    (engine / file).unlink()
    (engine / file).write_bytes(data)
    assert f"{file} is changed" in ask(refused, engine)
    (engine / file).write_bytes(data[:-1])
    assert "changed or truncated" in ask(refused, engine)


@pytest.mark.parametrize(
    "manifest", [b"", b"{", b"[]", b'{"format_version": 1}', b"\xff\xfe", b'{"format_version": "1"}']
)
def test_run_damaged_manifest(refused, engine, manifest):
    (engine / "manifest.json").write_bytes(manifest)
    assert "manifest.json" in ask(refused, engine)


def test_commands_that_are_used_wrongly(refused):
    assert "No such command" in refused("fly")
    assert "prompt" in refused("run", "engine").lower()
    assert "No such option" in refused("run", "engine", "--prompt", "x", "--fast")
    refused("export")


def test_nothing_is_written_to_a_folder_that_is_read_only(refused, checkpoint, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", fail)
    assert "Permission denied" in refused("export", checkpoint, "-o", tmp_path / "new" / "graphs")


def test_as_a_program_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from vlkv.cli.main import main; main()", "run", "nowhere", "--prompt", "x"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vlkv: nowhere: no such directory\n"


@pytest.mark.parametrize(
    "option, value, told",
    [
        ("--slots", "99999999999999999999", "slots 99999999999999999999 is over 4096"),
        ("--slots", "100000000", "slots 100000000 is over 4096"),
        ("--capacity", "-1", "capacity -1 is under 1"),
        ("--prompt-tokens", "0", "prompt_tokens 0 is under 1"),
        ("--max-body", "0", "max-body 0 is under 1024 bytes"),
        ("--memory", "64KiB", "no request of a picture and 64 tokens of text could ever run"),
    ],
)
def test_sizes_of_a_server_that_make_no_sense(refused, built_of, option, value, told):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: make .venv/served")
    assert told in refused("serve", built_of("llama-old"), "--port", "0", option, value)
