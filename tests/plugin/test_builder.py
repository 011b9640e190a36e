"""Graphs with the plugin's nodes: TensorRT for RTX builds engines from them on the CPU, ONNX Runtime runs them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from plugin_nodes import plugin_nodes

from vlkv.export.ops.graphs import evict_model, score_model

CASES = {
    f"{case}-{dtype}{rest}"
    for dtype in ("float32", "float16", "bfloat16")
    for case, rest in [
        ("score", ""),
        *(("evict", f"-{a}-{b}") for a in ("per_head", "shared") for b in ("merge", "drop")),
    ]
}


@pytest.fixture(scope="module")
def engines(plugin, tmp_path_factory) -> dict:
    """Build every case in one process; return what it reports."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("no TensorRT for RTX (pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings)")
    # The parser opens the library by a name that the wheel lacks, as soon as it meets a plugin.
    folder = tmp_path_factory.mktemp("libraries")
    library = Path(spec.submodule_search_locations[0]) / "libtensorrt_rtx.so.1"
    (folder / "libtensorrt_rtx.so").symlink_to(library)
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("build_engines.py"), plugin],
        env=os.environ | {"LD_LIBRARY_PATH": ":".join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["case"]: report for report in reports}


def test_every_case_was_built(engines):
    assert set(engines) == CASES


@pytest.mark.parametrize("case", sorted(CASES))
def test_engine_holds_the_plugin(engines, case):
    report = engines[case]
    assert report["error"] == ""
    assert report["nodes"] == report["plugins"] == 1
    assert report["engine"] > 0
    assert report["named"]
    if case.startswith("score"):
        assert report["outputs"] == {"score": [3, "FLOAT"], "sparsity": [1, "FLOAT"]}
    else:
        cache = [4, {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}[case.split("-")[1]]]
        assert report["outputs"] == {"new_key": cache, "new_value": cache, "position": [3, "INT32"]}


def run(model: onnx.ModelProto, feed: dict) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


def test_score_node_runs_as_a_function(rng):
    model = ir.to_proto(score_model(0.3, 0.01))
    feed = {
        "query": rng.standard_normal((2, 4, 5, 8), np.float32),
        "key": rng.standard_normal((2, 2, 9, 8), np.float32),
        "row_position": np.array([[4, 5, 6, 7, 8], [0, 1, 2, -1, -1]]),
    }
    wanted = run(model, feed)
    assert plugin_nodes(model) == 1
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["VlkvScore"]
    for got, want in zip(run(model, feed), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_evict_node_runs_as_a_function(rng, per_head, merge):
    model = ir.to_proto(evict_model(per_head, merge))
    key, value = rng.standard_normal((2, 2, 2, 9, 8), np.float32)
    counts = {"length": [9, 5], "keep": [4, 3], "sinks": [1, 1], "recent": [1, 0]}
    feed = {name: np.array(values) for name, values in counts.items()}
    feed |= {"key": key, "value": value, "score": rng.random((2, 2, 9), np.float32), "capacity": np.array(6)}
    wanted = run(model, feed)
    assert plugin_nodes(model) == 1
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Unsqueeze", "VlkvEvict"]
    for got, want in zip(run(model, feed), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
