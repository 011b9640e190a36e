"""Caches of 8 bits in GroupQueryAttention: attention and scores of the dequantised cache by float64; Evict's codes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from models import onnx_runs
from oracles import attend, score
from vlkv.errors import EngineError
from vlkv.storage.manifest import read, token_bytes
from vlkv_export.engine import build_engine
from vlkv_export.targets import onnxruntime_cuda
from vlkv_export.targets.spec import Settings

SHAPE = "llama-gqa-tied"
HALF, SINGLE = 2.0**-11, 2.0**-24
SETTINGS = {"dtype": "float16", "capacity": 128, "batch": 3, "chunk": 64}


@pytest.fixture(scope="module")
def built(graphs_of, tmp_path_factory):
    """Engine directories of the cache's dtypes."""
    base = tmp_path_factory.mktemp("quantised")
    for kv in ("int8", "float8"):
        settings = Settings(**SETTINGS)
        build_engine(graphs_of(SHAPE), base / kv, operators="functions", kv_dtype=kv, settings=settings)
    return base


def scales_of(model, layer):
    """The scales of a layer's keys and values, from the graph."""
    values = model.graph.initializers
    return [
        values[f"{kind}_scale.{layer}"].const_value.numpy().astype(np.float64) for kind in ("key", "value")
    ]


@pytest.fixture(scope="module")
def decoder(built):
    """The int8 decoder with more outputs: what goes into each layer's attention and Score, and what comes of it."""
    model = ir.load(built / "int8" / "decoder.onnx")
    names = {}
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            layer = node.inputs[3].name.rpartition(".")[2]
            inside = {"query": node.inputs[0], "key": node.inputs[1], "value": node.inputs[2]}
            names |= {
                f"{name}.{layer}": value for name, value in (inside | {"result": node.outputs[0]}).items()
            }
    for name, value in names.items():
        if not value.is_graph_output():
            model.graph.outputs.append(value)
        names[name] = value.name
    path = built / "int8" / "decoder.test.onnx"
    ir.save(model, path)
    return path, model, names


@pytest.mark.parametrize("call", ["chunk", "step"])
def test_attention_and_score_read_the_dequantised_cache(call, decoder, built, rng):
    path, model, names = decoder
    manifest = read(built / "int8")
    text = manifest.text
    feeds = onnx_runs.decoder_feeds(manifest, call, rng)
    for layer in range(text.layers):
        for kind in ("key", "value"):
            shape = feeds[f"{kind}_cache.{layer}"].shape
            feeds[f"{kind}_cache.{layer}"] = rng.integers(-128, 128, shape).astype(np.int8)
    found = onnx_runs.run(path, feeds)
    batch, tokens = feeds["position_ids"].shape
    for layer in range(text.layers):
        first = feeds["length"][layer]
        last, dim = first + tokens - 1, text.head_dim
        parts = {}
        for kind, scale in zip(("key", "value"), scales_of(model, layer), strict=True):
            codes = found[f"new_{kind}_cache.{layer}"]
            assert codes.dtype == np.int8
            before = feeds[f"{kind}_cache.{layer}"]
            given = found[names[f"{kind}.{layer}"]].reshape(batch, tokens, text.kv_heads, dim)
            for b in range(batch):
                new = slice(first[b], first[b] + tokens)
                exact = given[b].transpose(1, 0, 2).astype(np.float64) / scale
                # a quotient within float32's rounding of a half may go either way
                off = np.abs(codes[b, :, new] - np.clip(exact, -128, 127))
                assert off.max() <= 0.5 + 256 * SINGLE
                # slots past the last one are written too where the caches are not bound to one memory
                np.testing.assert_array_equal(codes[b, :, : new.start], before[b, :, : new.start])
            parts[kind] = codes * scale
        query = found[names[f"query.{layer}"]].reshape(batch, tokens, text.query_heads, dim)
        scale = dim**-0.5
        want, magnitude = attend.attend_stored(query, parts["key"], parts["value"], first, last, scale)
        got = found[names[f"result.{layer}"]].reshape(want.shape)
        # the logits' error grows with the products of a row; results are rounded to 16 bits
        logit = scale * np.abs(query.astype(np.float64)).sum(-1).max() * np.abs(parts["key"]).max()
        most = magnitude * (4 * HALF + 2 * np.expm1(4 * dim * SINGLE * logit)) + 2.0**-24
        assert (np.abs(got - want) <= most).all(), (np.abs(got - want) - most).max()
        rows = feeds["row_index"]
        places = np.where(rows < 0, -1, first[:, None] + rows)
        observed = np.take_along_axis(query, np.maximum(rows, 0)[:, :, None, None], 1).transpose(0, 2, 1, 3)
        total, pairs, below = score.score(observed, parts["key"], places, scale, 0.01)
        near = score.near(observed, parts["key"], places, scale, 0.01, 16 * dim * SINGLE * logit)
        np.testing.assert_allclose(
            found[f"score.{layer}"], total, rtol=0, atol=64 * dim * SINGLE * max(1, logit)
        )
        share = found["sparsity"][layer] * pairs
        assert (np.abs(share - below) <= near + 1e-3).all()


def test_unobserved_steps_score_nothing(decoder, built, rng):
    """Score is in a branch, so that a step without observed rows does not widen its cache."""
    path, model, _ = decoder
    manifest = read(built / "int8")
    feeds = onnx_runs.decoder_feeds(manifest, "step", rng)
    feeds["row_index"] = feeds["row_index"][:, :0]
    for name in [name for name in feeds if "_cache" in name]:
        feeds[name] = rng.integers(-128, 128, feeds[name].shape).astype(np.int8)
    found = onnx_runs.run(path, feeds)
    for layer in range(manifest.text.layers):
        assert found[f"score.{layer}"].shape == feeds[f"key_cache.{layer}"].shape[:3]
        assert not found[f"score.{layer}"].any()
    assert not found["sparsity"].any()
    assert not any(node.op_type == "Score" for node in model.graph)


@pytest.mark.parametrize("graph", ["compress", "compress_merge"])
@pytest.mark.parametrize("kv", ["int8", "float8"])
def test_evict_moves_codes(graph, kv, built, rng):
    """Kept codes are the given ones, bit for bit; merged ones are the rounded means of theirs."""
    heads, slots, dim, keep = 2, 13, 16, 5
    codes = rng.integers(-128, 128, (2, 1, heads, slots, dim))
    stored = codes.astype(np.int8) if kv == "int8" else (codes * 3.4).astype(ml_dtypes.float8_e4m3fn)
    session = onnx_runs.session(built / kv / f"{graph}.onnx")
    scores = rng.permutation(heads * slots).astype(np.float32).reshape(1, heads, slots)
    numbers = {"length": slots, "keep": keep, "sinks": 1, "recent": 1}
    feeds = {name: ort.OrtValue.ortvalue_from_numpy(np.array([n])) for name, n in numbers.items()}
    feeds["score"] = ort.OrtValue.ortvalue_from_numpy(scores)
    feeds["capacity"] = ort.OrtValue.ortvalue_from_numpy(np.array(keep))
    feeds["per_head"] = ort.OrtValue.ortvalue_from_numpy(np.array(True))
    for name, array in zip(("key", "value"), stored, strict=True):
        feeds[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.int8 if kv == "int8" else np.uint8),
            onnx.TensorProto.INT8 if kv == "int8" else onnx.TensorProto.FLOAT8E4M3FN,
        )
    results = session.run_with_ort_values(["new_key", "new_value", "position"], feeds)
    position = results[2].numpy()[0]
    kind = np.int8 if kv == "int8" else ml_dtypes.float8_e4m3fn
    for array, result in zip(stored, results[:2], strict=True):
        got = raw(result, kind)
        for head in range(heads):
            wanted = array[0, head, position[head]].astype(np.float64)
            if graph == "compress_merge":
                wanted = merged(array[0, head].astype(np.float64), position[head])
                off = np.abs(got[0, head].astype(np.float64) - wanted)
                # a mean in float16, then the nearest code
                step = np.maximum(np.abs(wanted) * 2.0**-4, 2.0**-10) if kv == "float8" else 0.5
                assert (off <= step + np.abs(wanted) * HALF).all()
            else:
                np.testing.assert_array_equal(got[0, head].astype(np.float64), wanted)


def raw(value, kind):
    """An OrtValue's elements; NumPy has no float8 of its own."""
    import ctypes

    shape = value.shape()
    size = int(np.prod(shape))
    buffer = (ctypes.c_uint8 * size).from_address(value.data_ptr())
    return np.frombuffer(buffer, np.uint8).copy().view(kind).reshape(shape)


def merged(values, position):
    """Each slot goes to the nearest kept one, the lower at a tie; means of what came together."""
    sums, counts = values[position].copy(), np.ones(len(position))
    for slot in sorted(set(range(len(values))) - set(position.tolist())):
        nearest = min(range(len(position)), key=lambda n: (abs(position[n] - slot), position[n]))
        sums[nearest] += values[slot]
        counts[nearest] += 1
    return sums / counts[:, None]


@pytest.mark.parametrize("kv", ["int8", "float8"])
def test_what_the_engine_says(kv, built):
    facts = read(built / kv)
    name = {"int8": "int8-channel", "float8": "float8"}[kv]
    assert (facts.cache_dtype, facts.weights, facts.operators) == (name, "float16", "functions")
    assert token_bytes(facts.text, facts.cache_dtype) * 2 == token_bytes(facts.text, "float16")
    model = onnx.load(built / kv / "decoder.onnx", load_external_data=False)
    onnx.checker.check_model(str(built / kv / "decoder.onnx"))
    (first, *_) = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in first.attribute}
    mode = {"int8": b"PER_CHANNEL", "float8": b"PER_TENSOR"}[kv]
    assert (attributes["k_quant_type"], attributes["v_quant_type"], attributes["kv_cache_bit_width"]) == (
        mode,
        mode,
        8,
    )
    assert list(first.input[7:12]) == [""] * 5
    wanted = {"int8": onnx.TensorProto.INT8, "float8": onnx.TensorProto.FLOAT8E4M3FN}[kv]
    caches = [v for v in (*model.graph.input, *model.graph.output) if "_cache." in v.name]
    assert {v.type.tensor_type.elem_type for v in caches} == {wanted}


def test_of_float8_only_the_kernel_is_missing_on_the_cpu(built):
    """ONNX Runtime resolves the types of all nodes before it looks for kernels."""
    with pytest.raises(Exception, match=r"(?s)kernel for com\.microsoft\.GroupQueryAttention"):
        onnx_runs.session(built / "float8" / "decoder.onnx")


@pytest.mark.parametrize(
    ("kv", "settings", "operators", "wanted"),
    [
        ("int8", SETTINGS, None, "--kv-dtype int8 goes with --operators functions on CUDA"),
        ("float8", SETTINGS, "native", "--kv-dtype float8 goes with --operators functions on CUDA"),
        ("float32", SETTINGS, "functions", "--kv-dtype float32 does not go with --dtype float16"),
        (
            "int8",
            SETTINGS | {"dtype": "bfloat16"},
            "functions",
            "--kv-dtype int8 needs --dtype float16, not bfloat16",
        ),
        (
            "float8",
            {},
            "functions",
            "--kv-dtype float8 is for GPUs: give --dtype and --operators functions too",
        ),
        ("float6", SETTINGS, "functions", "float6"),
    ],
)
def test_options_that_do_not_go_together(kv, settings, operators, wanted, graphs_of, tmp_path):
    with pytest.raises(EngineError, match=wanted):
        build_engine(
            graphs_of(SHAPE), tmp_path / "e", operators=operators, kv_dtype=kv, settings=Settings(**settings)
        )
    assert not (tmp_path / "e").exists()


def test_an_older_onnxruntime_is_named(graphs_of, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime_cuda, "version", lambda name: "1.30.2")
    with pytest.raises(
        EngineError, match=r"--kv-dtype float8 on CUDA needs ONNX Runtime 1\.31 or later, not 1\.30\.2"
    ):
        settings = Settings(**SETTINGS)
        build_engine(
            graphs_of(SHAPE), tmp_path / "e", operators="functions", kv_dtype="float8", settings=settings
        )
