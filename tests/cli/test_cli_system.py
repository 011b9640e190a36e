"""The command line with its operating system: full disks, closed pipes, encodings, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_disk import needs_mount, small_disk

PROMPT = "what is the total"
MAIN = "from vlkv.cli.main import main; main()"


def shell(line, **environment):
    """Runs a shell command in which `$VLKV` is `vlkv`."""
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, check=False,
        env={**os.environ, "VLKV": f"{sys.executable} -c '{MAIN}'", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


def ask(engine, more=""):
    return f"eval $VLKV -q run '{engine}' --prompt \"'{PROMPT}'\" --max-new-tokens 3 {more}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("what", ["run", "json", "policies", "version"])
@pytest.mark.parametrize(
    ("where", "text"), [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")]
)
def test_output_that_goes_nowhere_is_one_line(built_of, what, where, text):
    line = {"run": ask(built_of("llama")), "json": ask(built_of("llama"), "--json"),
            "policies": "eval $VLKV policies", "version": "eval $VLKV --version"}[what]  # fmt: skip
    code, _, err = shell(f"{line} {where}")
    assert code == 2
    assert err.startswith("vlkv: ")
    assert err.count("\n") == 1
    assert text in err


def test_a_reader_that_goes_away_is_no_traceback():
    code, _, err = shell("eval $VLKV policies --json | true; exit ${PIPESTATUS[0]}")
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_a_character_breaks_no_answer(encoding):
    script = (
        "import sys\nfrom vlkv.cli.console import whole_output, write_json\n"
        "with whole_output():\n    sys.stdout.write('a \\N{GRINNING FACE} b\\n')\n"
        "    write_json({'text': 'é\\N{GRINNING FACE}'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown, data = done.stdout.decode(encoding).splitlines()
    assert shown == r"a \U0001f600 b"
    assert json.loads(data) == {"text": "é\U0001f600"}
    assert data.isascii()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("command", ["export", "build"])
def test_a_signal_leaves_nothing_half_written(checkpoint_of, graphs_of, tmp_path, number, command):
    module = "vlkv_export.directory.describe" if command == "export" else "vlkv_export.engine.file_facts"
    room, name = module.rsplit(".", 1)
    source = (checkpoint_of if command == "export" else graphs_of)("llama")
    script = (
        f"import time, {room} as room\n"
        f"def wait(*a, **k):\n    print('here', flush=True)\n    time.sleep(60)\nroom.{name} = wait\n{MAIN}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, command, str(source), "-o", str(tmp_path / "sub" / "target")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"here\n"
    assert list((tmp_path / "sub").iterdir())
    process.send_signal(number)
    start = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 20
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_the_commands_are_imported_is_no_traceback(number):
    script = (
        "import os, vlkv.cli.main as room\n"
        f"room._add_commands = lambda: os.kill(os.getpid(), {int(number)})\nroom.main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (128 + number, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_the_first_is_obeyed_leaves_nothing_either(checkpoint_of, tmp_path, number):
    script = (
        "import shutil, time, vlkv_export.directory as room\n"
        "def wait(*a, **k):\n    print('here', flush=True)\n    time.sleep(60)\nroom.describe = wait\n"
        "remove = shutil.rmtree\n"
        "def slow(*a, **k):\n    shutil.rmtree = remove\n    print('removing', flush=True)\n    time.sleep(60)\n"
        f"shutil.rmtree = slow\n{MAIN}"
    )
    source, target = str(checkpoint_of("llama")), str(tmp_path / "sub" / "target")
    process = subprocess.Popen(
        [sys.executable, "-c", script, "export", source, "-o", target],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for said in (b"here\n", b"removing\n"):
        assert process.stdout.readline() == said
        assert list((tmp_path / "sub").iterdir())
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@needs_mount
@pytest.mark.parametrize("command", ["export", "build"])
def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint_of, graphs_of, tmp_path, command):
    source = (checkpoint_of if command == "export" else graphs_of)("llama")
    with small_disk(tmp_path / "small", 64) as small:
        code, out, err = shell(f"eval $VLKV {command} {source} -o {small}/target")
        assert (code, out) == (2, b"")
        assert err.count("\n") == 1
        assert "No space left on device" in err
        assert list(small.iterdir()) == []


@pytest.fixture(scope="module")
def shipped_engine(tmp_path_factory):
    """The engine of the shipped checkpoint: `vlkv eval` wants one that has learned its forms."""
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.engine import build_engine

    base = tmp_path_factory.mktemp("shipped")
    export_checkpoint(Path(__file__).parents[2] / "examples" / "tiny_vlm" / "checkpoint", base / "graphs")
    build_engine(base / "graphs", base / "engine")
    return base / "engine"


SAXPY = Path(__file__).parents[2] / "examples" / "tune" / "saxpy.c"
RUNS = {"eval": {"answers.jsonl"}, "tune": {"candidates", "ledger.jsonl"}, "bench": set(), "triton": None}
"""Commands, and what they may leave for the run that goes on; None is nothing at all, not even the folder."""


@needs_mount
@pytest.mark.parametrize("command", RUNS)
def test_results_on_a_full_disk_are_one_line_and_leave_what_a_later_run_reads(
    shipped_engine, tmp_path, command
):
    more = {
        "eval": f"{shipped_engine} --samples 1 --policy full --budget 1",
        "tune": f"--source {SAXPY} --calls 1",
        "bench": f"{shipped_engine} --prompt-tokens 640 --new-tokens 2 --repeat 1 --budget 1",
        "triton": f"{shipped_engine}",
    }[command]
    with small_disk(tmp_path / "small", 4) as small:
        (small / "filler").write_bytes(bytes(4096))
        code, _, err = shell(f"eval $VLKV -q {command} {more} -o {small}/target")
        assert code == 2
        assert err.splitlines()[-1].startswith("vlkv: ") and "No space left on device" in err
        assert "Traceback" not in err
        left = {path.name for path in (small / "target").rglob("*")}
        assert left <= (RUNS[command] or set())
        assert RUNS[command] is not None or not (small / "target").exists()
