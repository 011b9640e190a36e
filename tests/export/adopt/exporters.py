"""Run by a process of its own, with an exporter's folder on its path: graphs of checkpoints, by the real exporter.

PYTHONPATH=.venv/exporters/genai python exporters.py genai CHECKPOINT TARGET PRECISION [CHECKPOINT TARGET PRECISION]...
"""

from __future__ import annotations

import runpy
import sys
import tempfile


def genai(checkpoint: str, target: str, precision: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        words = ["-m", checkpoint, "-i", checkpoint, "-o", target, "-p", precision, "-e", "cpu", "-c", cache]
        sys.argv = ["builder", *words]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


def optimum(checkpoint: str, target: str, precision: str) -> None:
    from optimum.exporters.onnx import main_export

    assert precision == "fp32"
    main_export(checkpoint, target, task="text-generation-with-past")


if __name__ == "__main__":
    export = {"genai": genai, "optimum": optimum}[sys.argv[1]]
    given = sys.argv[2:]
    for place in range(0, len(given), 3):
        export(*given[place : place + 3])
