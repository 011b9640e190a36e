"""The operators' ONNX functions are valid, committed as generated, generic in dtype, and bounded in memory."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import vlkv.ops.bodies
from vlkv import ops
from vlkv_export.ops import compress_model, evict_model, function_protos, functions, score_model
from vlkv_export.ops.__main__ import bodies

DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


def long(*numbers):
    return np.array(numbers, np.int64)


def cache(rng, *shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def compress_feeds(rng, dtype=np.float32, per_head=True, merge=False):
    score = (rng.integers(0, 99, (2, 3, 11)) / 8).astype(np.float32)
    feeds = {"key": cache(rng, 2, 3, 11, 4, dtype=dtype), "value": cache(rng, 2, 3, 11, 4, dtype=dtype)}
    feeds |= {
        "score": score,
        "length": long(11, 7),
        "keep": long(4, 9),
        "sinks": long(1, 0),
        "recent": long(1, 2),
    }
    return feeds | {"capacity": np.array(9), "per_head": np.array(per_head), "merge": np.array(merge)}


def expected(feeds):
    arguments = {**feeds, "capacity": int(feeds["capacity"]), "per_head": bool(feeds["per_head"])}
    arguments["merge"] = "nearest_mean" if feeds["merge"] else "none"
    return ops.evict(**arguments, implementation="reference")


def test_committed_bodies_are_what_is_generated():
    for name, content in bodies().items():
        committed = (Path(vlkv.ops.bodies.__file__).parent / name).read_bytes()
        assert committed == content, f"{name}: run python -m vlkv_export.ops"


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "vlkv_export.ops", str(folder)], env=environment, check=True)
        for name, content in bodies().items():
            assert (folder / name).read_bytes() == content


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_models_pass_the_full_checks(dtype):
    for model in (
        compress_model(dtype),
        evict_model(True, True, dtype),
        compress_model(dtype, kv_heads=2, head_dim=16),
        score_model(0.25, 0.01, dtype),
    ):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_functions_are_standard_operators_documented_and_fresh():
    first, second = functions(), functions()
    assert [function.identifier() for function in first] == [("vlkv", "Score", ""), ("vlkv", "Evict", "")]
    for one, other, proto in zip(first, second, function_protos(), strict=True):
        assert one is not other
        assert {node.domain for node in one.all_nodes()} == {""}
        assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 24)]
        assert "Outputs:" in proto.doc_string
        names = Counter(value.name for node in one.all_nodes() for value in node.outputs)
        assert max(names.values()) == 1


def test_borders_of_compress_are_the_graph_contract():
    graph = compress_model().graph
    shapes = {value.name: (str(value.dtype), [str(d) for d in value.shape]) for value in graph.inputs}
    assert list(shapes) == [
        "key",
        "value",
        "score",
        "length",
        "keep",
        "sinks",
        "recent",
        "capacity",
        "per_head",
        "merge",
    ]
    assert shapes["key"] == ("FLOAT", ["B", "Hkv", "C", "D"])
    assert [value.name for value in graph.outputs] == ["new_key", "new_value", "position"]
    assert [str(d) for d in graph.outputs[0].shape] == ["B", "Hkv", "capacity", "D"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_score_computes_in_float32_for_every_dtype(rng, dtype):
    query, key = cache(rng, 2, 4, 70, 8, dtype=dtype), cache(rng, 2, 2, 9, 8, dtype=dtype)
    row_position = rng.integers(-1, 9, (2, 70))
    session = open_model(score_model(0.25, 0.02, DTYPES[dtype]))
    got = session.run(None, {"query": query, "key": key, "row_position": row_position})
    for one, other in zip(
        got, ops.score(query, key, row_position, 0.25, 0.02, implementation="reference"), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compress_for_every_dtype(rng, dtype, per_head, merge):
    feeds = compress_feeds(rng, dtype, per_head, merge)
    got = open_model(compress_model(DTYPES[dtype], kv_heads=3, head_dim=4)).run(None, feeds)
    for one, other in zip(got, expected(feeds), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_evict_as_one_node(rng, per_head, merge):
    """The flags are attributes of the node, and two nodes that differ share one function."""
    feeds = compress_feeds(rng, per_head=per_head, merge=merge)
    model = evict_model(per_head, merge)
    (node,) = model.graph
    flags = {"per_head": int(not per_head), "merge": int(merge)}
    model.graph.append(ir.node("Evict", node.inputs, flags, domain="vlkv", num_outputs=3))
    for value, old in zip(model.graph[1].outputs, node.outputs, strict=True):
        value.name, value.type = f"other_{old.name}", old.type
    model.graph.outputs.extend(model.graph[1].outputs)
    names = [value.name for value in model.graph.inputs]
    got = open_model(model).run(None, {name: feeds[name] for name in names})
    other = {**feeds, "per_head": np.array(not per_head)}
    for one, wanted in zip(got, [*expected(feeds), *expected(other)], strict=True):
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize(("batch", "capacity"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("merge", [False, True])
def test_empty_sizes_in_compress(rng, batch, capacity, merge):
    feeds = compress_feeds(rng, merge=merge)
    feeds = {name: value[:batch] if value.ndim else value for name, value in feeds.items()}
    feeds |= {name: np.zeros(batch, np.int64) for name in ("keep", "sinks", "recent")}
    new_key, _, position = open_model(compress_model()).run(None, {**feeds, "capacity": np.array(capacity)})
    assert new_key.shape == (batch, 3, capacity, 4)
    assert (position == -1).all()


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("rows", [0, 3])
def test_empty_sizes_in_the_graph(rng, batch, rows):
    feeds = {"query": cache(rng, batch, 4, rows, 8), "key": cache(rng, batch, 2, 5, 8)}
    feeds["row_position"] = rng.integers(-1, 5, (batch, rows))
    total, sparsity = open_model(score_model(0.25, 0.01)).run(None, feeds)
    assert total.shape == (batch, 2, 5)
    assert sparsity.shape == (batch,)
    assert rows or not (total.any() or sparsity.any())


def test_the_reference_evaluator_of_onnx_agrees(rng):
    for merge in (False, True):
        feeds = compress_feeds(rng, merge=merge)
        got = ReferenceEvaluator(ir.to_proto(compress_model())).run(None, feeds)
        for one, other in zip(got, expected(feeds), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    query, key, row_position = cache(rng, 1, 4, 70, 8), cache(rng, 1, 2, 9, 8), rng.integers(-1, 9, (1, 70))
    model = ir.to_proto(score_model(0.25, 0.01))
    with np.errstate(invalid="ignore"):
        got = ReferenceEvaluator(model).run(None, {"query": query, "key": key, "row_position": row_position})
    wanted = ops.score(query, key, row_position, 0.25, implementation="reference")
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)


def test_score_never_holds_rows_times_slots(rng, tmp_path):
    """No tensor of a run, including those of subgraphs, is larger than one tile of 64 rows."""
    heads, rows, slots = 4, 640, 300
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = open_model(score_model(0.25, 0.01), options)
    feeds = {"query": cache(rng, 1, heads, rows, 8), "key": cache(rng, 1, 2, slots, 8)}
    session.run(None, {**feeds, "row_position": rng.integers(-1, slots, (1, rows))})
    events = json.loads(Path(session.end_profiling()).read_text())
    shapes = [
        shape
        for event in events
        for output in event.get("args", {}).get("output_type_shape", [])
        for shape in output.values()
    ]
    assert max(math.prod(shape) for shape in shapes) == heads * 64 * slots


def test_onnx_runtime_is_imported_late_and_onnx_never():
    program = """
import sys
from vlkv import ops
assert "onnxruntime" not in sys.modules
import numpy as np
ops.score(np.ones((1, 1, 1, 4), "f"), np.ones((1, 1, 2, 4), "f"), [[1]], implementation="reference")
assert "onnxruntime" in sys.modules
assert not {"onnx", "onnxscript", "onnx_ir"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def open_model(model, options=None):
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
