"""Graphs of one plugin node each: TensorRT for RTX builds engines of them on the CPU, and ONNX Runtime runs them."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from vlkv.errors import EngineError
from vlkv_export.ops.graphs import evict_model, score_model
from vlkv_export.passes import plugin_nodes
from vlkv_export.targets.tensorrt import process

DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
FLAGS = list(itertools.product((False, True), repeat=2))
CASES = [("score", dtype) for dtype in DTYPES] + [
    (f"evict-{per_head:d}-{merge:d}", dtype) for dtype in DTYPES for per_head, merge in FLAGS
]
CACHE = ((1, 8, 1, 128), (1, 8, 4096, 128), (4, 8, 32768, 128))
PER_PROMPT = ((1,), (1,), (4,))
RANGES = {
    "query": ((1, 32, 0, 128), (1, 32, 64, 128), (4, 32, 1024, 128)),
    "row_position": ((1, 0), (1, 64), (4, 1024)),
    "key": CACHE,
    "value": CACHE,
    "score": tuple(shape[:3] for shape in CACHE),
    "capacity": ((0,), (410,), (32768,)),
    **dict.fromkeys(("length", "keep", "sinks", "recent"), PER_PROMPT),
}


def model_of(case: str, dtype: str) -> ir.Model:
    kind = ir.DataType[{"HALF": "FLOAT16", "BF16": "BFLOAT16"}.get(DTYPES[dtype], "FLOAT")]
    if case == "score":
        return score_model(0.125, 0.01, kind)
    _, per_head, merge = case.split("-")
    return evict_model(per_head == "1", merge == "1", kind, 8, 128)


@pytest.fixture(scope="module")
def built(plugin, builder, tmp_path_factory) -> process.Built:
    """Builds every case in one process."""
    folder = tmp_path_factory.mktemp("engines")
    graphs = []
    for case, dtype in CASES:
        model, name = model_of(case, dtype), f"{case}-{dtype}"
        assert plugin_nodes.apply(model) == 1
        ir.save(model, folder / f"{name}.onnx")
        profile = {value.name: RANGES[value.name] for value in model.graph.inputs}
        paths = {"onnx": str(folder / f"{name}.onnx"), "engine": str(folder / f"{name}.engine")}
        graphs.append({"name": name, "profiles": [profile], **paths})
    done = process.build(builder, plugin, ("8.9",), graphs)
    for name, facts in done.graphs.items():
        data = (folder / f"{name}.engine").read_bytes()
        assert len(data) == facts["bytes"]
        assert (b"VlkvScore" if name.startswith("score") else b"VlkvEvict") in data
    return done


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_engine_holds_the_plugin(built, case, dtype):
    facts = built.graphs[f"{case}-{dtype}"]
    assert len(facts["plugins"]) == facts["kinds"]["PLUGIN_V3"] == 1
    assert facts["bytes"] > 0
    if case == "score":
        assert facts["outputs"] == {"score": [3, "FLOAT"], "sparsity": [1, "FLOAT"]}
    else:
        cache = [4, DTYPES[dtype]]
        assert facts["outputs"] == {"new_key": cache, "new_value": cache, "position": [3, "INT32"]}


def test_a_library_that_is_no_plugin(builder, plugin, tmp_path):
    text, cut = tmp_path / "text.so", tmp_path / "cut.so"
    text.write_text("no library" * 100)
    with pytest.raises(EngineError, match=r"text\.so is not vlkv's plugin: .*invalid ELF header"):
        process.build(builder, text)
    # this may crash the dynamic linker
    cut.write_bytes(plugin.read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"loading the plugin|is not vlkv's plugin"):
        process.build(builder, cut)


def run(model: ir.Model, feed: dict) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feed)


def test_score_node_runs_as_a_function(rng):
    model = score_model(0.3, 0.01)
    feed = {
        "query": rng.standard_normal((2, 4, 5, 8), np.float32),
        "key": rng.standard_normal((2, 2, 9, 8), np.float32),
        "row_position": np.array([[4, 5, 6, 7, 8], [0, 1, 2, -1, -1]]),
    }
    wanted = run(model, feed)
    assert plugin_nodes.apply(model) == 1
    assert [node.op_type for node in model.graph] == ["VlkvScore"]
    for got, want in zip(run(model, feed), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("per_head", "merge"), FLAGS)
def test_evict_node_runs_as_a_function(rng, per_head, merge):
    model = evict_model(per_head, merge)
    key, value = rng.standard_normal((2, 2, 2, 9, 8), np.float32)
    counts = {"length": [9, 5], "keep": [4, 3], "sinks": [1, 1], "recent": [1, 0]}
    feed = {name: np.array(values) for name, values in counts.items()}
    feed |= {"key": key, "value": value, "score": rng.random((2, 2, 9), np.float32), "capacity": np.array(6)}
    wanted = run(model, feed)
    assert plugin_nodes.apply(model) == 1
    assert [node.op_type for node in model.graph] == ["Unsqueeze", "VlkvEvict"]
    for got, want in zip(run(model, feed), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
