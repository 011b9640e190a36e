"""`examples/gpu/first_hour.sh`: a step that fails does not stop the others, and the report lists all steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_an_unknown_argument_is_one_line(tmp_path):
    done = run("--fast")
    assert (done.returncode, done.stderr) == (
        2,
        "unknown argument --fast; known: -o DIR, --only NAME,NAME, --list\n",
    )
