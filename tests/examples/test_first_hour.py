"""`examples/gpu/first_hour.sh`: a step that fails does not stop the others, and the report lists all steps."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from vlkv.cli.main import main
from vlkv.storage.manifest import read
from vlkv_export.directory import export_checkpoint
from vlkv_export.targets.registry import TARGETS
from vlkv_export.targets.spec import Options

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "gpu" / "first_hour.sh"


def run(*arguments: object) -> subprocess.CompletedProcess:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    binaries = Path(sys.executable).parent
    told = {"PYTHON": sys.executable, "VLKV": str(binaries / "vlkv"), "STEP_SECONDS": "200"}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, timeout=250)


def test_goes_on_and_reports(tmp_path):
    done = run("-o", tmp_path, "--only", "sanitizer,export")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report.md").read_text()
    # `make test-gpu` builds the program for the sanitizer, and this run does not include it
    assert "- sanitizer: failed" in report or "- sanitizer: passed" in report
    assert "- export: passed" in report
    assert (tmp_path / "graphs" / "manifest.json").is_file()
    assert report.index("## sanitizer") < report.index("## export") < report.index("## Summary")


def test_every_backend_has_a_step():
    listed = run("--list").stdout
    for name in (
        "test-gpu", "bench-gpu", "onnxruntime-cuda-float16-native", "onnxruntime-cuda-bfloat16-functions",
        "onnxruntime-cuda-int8", "onnxruntime-cuda-float8", "recorded", "drawn", "bench-engines", "triton-gpu",
        "tensorrt-float16", "tensorrt-rtx-bfloat16",
        "tensorrt-plugin-bfloat16-in-place", "tensorrt-rtx-plugin", "polygraphy", "triton",
    ):  # fmt: skip
        assert f"\n{name} " in listed


def commands(name: str) -> list[list[str]]:
    """Returns the arguments of each `vlkv NAME` among the steps; a command in an argument is a compute capability."""
    text = re.sub(r"\$\([^)]*\)", "8.9", run("--list").stdout)
    return [shlex.split(line) for line in re.findall(rf"/vlkv ({name} [^;>\n]*)", text)]


def test_the_options_of_every_build_and_benchmark_suit_the_checkpoint(tmp_path, monkeypatch):
    export_checkpoint(ROOT / "examples" / "tiny_vlm" / "checkpoint", tmp_path)
    manifest, checked = read(tmp_path), []

    def check(source, target, backend, operators, watch, settings, weights, precision, link, kv_dtype, *_):
        if backend != "onnxruntime":  # neither a builder nor the plugin is here
            operators = "native" if settings.plugin else operators
            settings = dataclasses.replace(settings, plugin=None, lower_only=True)
        TARGETS[backend](backend, Options(operators, weights, precision, kv_dtype, settings), manifest)
        checked.append(backend)

    monkeypatch.setattr("vlkv_export.engine.build_engine", check)
    for arguments in commands("build"):
        with pytest.raises(SystemExit) as end:
            main([*arguments[:1], str(tmp_path), *arguments[2:]])
        assert end.value.code == 0, arguments
    assert {"onnxruntime", "tensorrt", "tensorrt-rtx"} == set(checked)
    benchmarks = commands("bench")
    assert benchmarks
    for arguments in benchmarks:
        named = dict(pairwise(arguments))
        longest = max(map(int, named["--prompt-tokens"].split(","))) + int(named["--new-tokens"])
        assert longest <= manifest.text.max_positions


def test_an_unknown_argument_is_one_line(tmp_path):
    done = run("--fast")
    assert (done.returncode, done.stderr) == (
        2,
        "unknown argument --fast; known: -o DIR, --only NAME,NAME, --list\n",
    )
