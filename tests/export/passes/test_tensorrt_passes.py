"""The passes for TensorRT: how often each rewrites, what it leaves alone, and equal results in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from models import onnx_runs, tiny
from oracles.evict import evict as evict_oracle
from vlkv.storage.manifest import read
from vlkv_export.ops import compress_model, evict_model
from vlkv_export.passes import (
    attend_in_place,
    dynamic_cache,
    fixed_flag,
    full_sort,
    function_bodies,
    half,
    plugin_nodes,
    static_cache,
    within_window,
)
from vlkv_export.targets.tensorrt.lower import lower_for_tensorrt
from vlkv_export.weights.convert import DTYPES, external, other_weights
from vlkv_export.weights.files import write_weights

LAYERS = 3
GRAPHS = ("vision", "decoder", "compress")

shapes = pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "mistral"])
calls = pytest.mark.parametrize("call", onnx_runs.CALLS)


@pytest.fixture
def folder(graphs_of, tmp_path):
    return lambda name: onnx_runs.copied(graphs_of(name), tmp_path / "graphs")


def count_nodes(path, op_type):
    return sum(node.op_type == op_type for node in ir.load(path).graph)


def serialized(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def unchanged(model, change):
    before = serialized(model)
    return change(model) == 0 and serialized(model) == before


@pytest.mark.parametrize("name", tiny.SHAPES)
@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("capacity", [None, 64])
def test_counts_of_a_whole_lowering(name, operators, capacity, graphs_of):
    source = graphs_of(name)
    models = {graph: ir.load(source / f"{graph}.onnx") for graph in GRAPHS}
    dtype = DTYPES[read(source).cache_dtype]
    counts = lower_for_tensorrt(models, {}, dtype, operators, capacity)
    cache = "dynamic_cache" if capacity is None else "static_cache"
    last = (
        (lambda bodies, sorts: {"plugin_nodes": bodies})
        if operators == "native"
        else (lambda bodies, sorts: {"function_bodies": bodies, "full_sort": sorts})
    )
    rows = {"observed_rows": LAYERS} if operators == "functions" else {}
    score = {"score": last(1, 0)} if operators == "functions" else {}
    windows = LAYERS if name == "mistral" else 0
    assert counts == score | {
        "vision": {"dtype": 0, **last(0, 0)},
        "decoder": {
            "dtype": 0,
            "within_window": windows,
            cache: 2 * LAYERS,
            **rows,
            **last(0 if rows else LAYERS, 0),
        },
        "compress": {"fixed_flag": 1, "dtype": 0, **last(1, 1)},
        "compress_merge": {"fixed_flag": 1, "dtype": 0, **last(1, 1)},
    }
    made = {node.op_type for model in models.values() for node in model.graph.all_nodes()}
    assert ("TensorScatter" in made) == (capacity is not None)
    assert not {"TopK", "If"} & made
    domains = {node.domain for model in models.values() for node in model.graph.all_nodes()}
    assert domains == ({"", "vlkv"} if operators == "native" else {""})


@shapes
@calls
def test_dynamic_cache(name, call, folder, rng):
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", dynamic_cache.apply)
    assert count == count_nodes(path, "ScatterElements") == 2 * LAYERS
    assert count_nodes(path, "TensorScatter") == 0
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before, after = onnx_runs.run(graphs / "decoder.onnx", feeds), onnx_runs.run(path, feeds)
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            cache = f"new_{kind}_cache.{layer}"
            # except for the rounding of sums in another order, no slot may differ
            np.testing.assert_allclose(after[cache], before[cache], rtol=0, atol=1e-5)
    onnx_runs.assert_decoders_agree(before, after, feeds)


@shapes
@calls
def test_attend_in_place(name, call, folder, rng):
    """The layer's function is the two updates and the Attention. The mask and its inputs are gone."""
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", lowered_in_place)
    assert count == count_nodes(path, "VlkvAttend") == LAYERS
    assert {count_nodes(path, gone) for gone in ("TensorScatter", "Attention", "LessOrEqual")} == {0}
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before, after = onnx_runs.run(graphs / "decoder.onnx", feeds), onnx_runs.run(path, feeds)
    onnx_runs.assert_decoders_agree(before, after, feeds)


def lowered_in_place(model):
    within_window.apply(model)
    count = attend_in_place.apply(model)
    common.RemoveUnusedNodesPass()(model)
    return count


def _no_mask(node):
    node.replace_input_with(3, None)


def _is_causal(node):
    node.attributes.add(ir.AttrInt64("is_causal", 1))


def _other_mask(node):
    node.inputs[3].producer().op_type = "Less"


@pytest.mark.parametrize("change", [_no_mask, _is_causal, _other_mask])
def test_attention_that_is_another_stays(change, graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    change(next(node for node in model.graph if node.op_type == "Attention"))
    assert unchanged(model, attend_in_place.apply)


@pytest.mark.parametrize("dim", [12, 264, None])
def test_head_sizes_that_the_plugin_lacks_stay(dim, graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    for value in model.graph.inputs:
        if "cache" in value.name:
            value.shape = ir.Shape([*list(value.shape)[:3], dim])
    assert unchanged(model, attend_in_place.apply)


@shapes
@calls
def test_static_cache(name, call, folder, rng):
    graphs = folder(name)
    slots = 28
    path, count = onnx_runs.changed(
        graphs, "decoder", lambda model: static_cache.apply(model, capacity=slots)
    )
    assert count == 2 * LAYERS
    for value in [*ir.load(path).graph.inputs, *ir.load(path).graph.outputs]:
        if "cache" in value.name:
            assert value.shape[2] == slots
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    for cache in [cache for cache in feeds if "cache" in cache]:
        short = slots - feeds[cache].shape[2]
        feeds[cache] = np.pad(feeds[cache], [(0, 0), (0, 0), (0, short), (0, 0)])
    before, after = onnx_runs.run(graphs / "decoder.onnx", feeds), onnx_runs.run(path, feeds)
    onnx_runs.assert_decoders_agree(before, after, feeds)


@shapes
@calls
@pytest.mark.parametrize(("change", "each"), [(function_bodies.apply, 0), (plugin_nodes.apply, LAYERS)])
def test_score_in_the_decoder(name, call, change, each, folder, rng):
    """Inlined bodies and the plugin's nodes, which ONNX Runtime runs as functions, equal the function exactly."""
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", change)
    assert count == LAYERS
    assert count_nodes(path, "VlkvScore") == each
    assert count_nodes(path, "Score") == 0
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before, after = onnx_runs.run(graphs / "decoder.onnx", feeds), onnx_runs.run(path, feeds)
    onnx_runs.assert_decoders_agree(before, after, feeds)


def compress_feeds(rng, batch=2, heads=2, slots=37, dim=8, ties=False):
    length = rng.integers(0, slots + 1, batch)
    keep = np.array([rng.integers(0, n + 1) for n in length])
    sinks = np.array([rng.integers(0, n + 1) for n in keep])
    recent = np.array([rng.integers(0, k - s + 1) for k, s in zip(keep, sinks, strict=True)])
    score = rng.random((batch, heads, slots), np.float32)
    if ties:
        score = rng.choice(np.array([0, -0.0, 1, np.inf, -np.inf, np.nan, 1e-45], np.float32), score.shape)
    return {
        "key": rng.standard_normal((batch, heads, slots, dim), np.float32),
        "value": rng.standard_normal((batch, heads, slots, dim), np.float32),
        "score": score,
        "length": length,
        "keep": keep,
        "sinks": sinks,
        "recent": recent,
        "capacity": np.array(max(1, keep.max())),
    }


@pytest.mark.parametrize("ties", [False, True], ids=["scores", "ties, infinities and NaN"])
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_compress_lowered_to_bodies(merge, per_head, ties, rng, tmp_path):
    """Taking the branch, inlining the body and replacing the sort each keep the result to the bit."""
    whole, lowered = tmp_path / "whole.onnx", tmp_path / "lowered.onnx"
    ir.save(compress_model(), whole)
    model = compress_model()
    assert fixed_flag.apply(model, name="merge", value=merge) == 1
    assert function_bodies.apply(model) == 1
    assert full_sort.apply(model) == 1
    assert "TopK" not in {node.op_type for node in model.graph.all_nodes()}
    ir.save(model, lowered)
    onnx.checker.check_model(lowered)
    for _ in range(20):
        feeds = compress_feeds(rng, slots=int(rng.integers(1, 60)), ties=ties)
        flags = {"per_head": np.array(per_head), "merge": np.array(merge)}
        before = onnx_runs.run(whole, feeds | flags)
        after = onnx_runs.run(lowered, feeds | flags)
        for output in ("position", "new_key", "new_value"):
            np.testing.assert_array_equal(after[output], before[output])


@pytest.mark.parametrize("merge", [False, True])
def test_compress_with_plugin_nodes(merge, rng, tmp_path):
    whole, lowered = tmp_path / "whole.onnx", tmp_path / "lowered.onnx"
    ir.save(compress_model(), whole)
    model = compress_model()
    assert fixed_flag.apply(model, name="merge", value=merge) == 1
    assert plugin_nodes.apply(model) == 1
    ir.save(model, lowered)
    onnx.checker.check_model(lowered)
    feeds = compress_feeds(rng)
    flags = {"per_head": np.array(True), "merge": np.array(merge)}
    before, after = onnx_runs.run(whole, feeds | flags), onnx_runs.run(lowered, feeds | flags)
    for output in before:
        np.testing.assert_array_equal(after[output], before[output])


def test_selection_keeps_what_the_oracle_keeps(rng, tmp_path):
    """Compares with float64 NumPy, which shares no code with either body."""
    model = evict_model(per_head=True, merge=False)
    assert (function_bodies.apply(model), full_sort.apply(model)) == (1, 1)
    ir.save(model, tmp_path / "evict.onnx")
    feeds = compress_feeds(rng, batch=3, slots=200)
    found = onnx_runs.run(tmp_path / "evict.onnx", feeds)
    _, _, position = evict_oracle(*feeds.values(), per_head=True, merge="none")
    np.testing.assert_array_equal(found["position"], position)


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_float16_graphs_against_the_checkpoints_dtype(name, folder, rng):
    """They differ by float16's rounding. ONNX Runtime cannot run bfloat16 graphs, so those are only opened."""
    graphs = folder(name)
    source = read(graphs).cache_dtype
    models = {graph: ir.load(graphs / f"{graph}.onnx") for graph in GRAPHS}
    others = other_weights(models, "float16")
    placed = (
        write_weights(graphs, graphs / "half.safetensors", others, set(), dtype="float16") if others else {}
    )
    tensors = {name: external(tensor) for name, tensor in placed.items()}
    for graph in ("vision", "decoder"):
        path, count = onnx_runs.changed(
            graphs, graph, lambda model: half.apply(model, dtype=ir.DataType.FLOAT16, converted=tensors)
        )
        weights = sum(name in models[graph].graph.initializers for name in others)
        assert count == (0 if source == "float16" else weights) > (-1 if source == "float16" else 20)
        changed = ir.load(path)
        kinds = {value.dtype for value in changed.graph.initializers.values()}
        assert ir.DataType.BFLOAT16 not in kinds
        if source == "bfloat16":
            onnx_runs.session(path)
            continue
        feeds = (
            onnx_runs.decoder_feeds(read(graphs), "chunk", rng)
            if graph == "decoder"
            else {
                "pixel_values": rng.normal(size=(1, 3, read(graphs).image.height, read(graphs).image.width))
            }
        )
        narrow = {n: a.astype(np.float16) if "cache" in n else a for n, a in feeds.items()}
        narrow = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in narrow.items()}
        feeds = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in feeds.items()}
        before = onnx_runs.run(graphs / f"{graph}.onnx", narrow if source == "float16" else feeds)
        after = onnx_runs.run(path, narrow)
        output = "logits" if graph == "decoder" else "image_features"
        assert after[output].dtype == np.float32
        # 2^-11 for each of 1500 terms, at random, of the largest; both sides err
        limit = 2 * 2.0**-11 * 1500**0.5 * np.abs(before[output]).max()
        np.testing.assert_allclose(after[output], before[output], rtol=0, atol=limit)
        if graph == "decoder":
            assert after["new_key_cache.0"].dtype == np.float16
            assert after["score.0"].dtype == after["sparsity"].dtype == np.float32


@pytest.mark.parametrize("name", ["llama", "llama-biases"])
def test_positions_are_computed_in_float32(name, graphs_of):
    """Float16 counts to 2048 and bfloat16 to 256, so RoPE's angles of later positions would be wrong."""
    model = ir.load(graphs_of(name) / "decoder.onnx")
    zeros = {key: ir.tensor(np.zeros(1, np.float16), name=key) for key in model.graph.initializers}
    half.apply(model, dtype=ir.DataType.FLOAT16, converted=zeros)
    (cosine,) = {node.inputs[1] for node in model.graph if node.op_type == "RotaryEmbedding"}
    cast = cosine.producer()
    assert (cast.op_type, cast.attributes.get_int("to")) == ("Cast", ir.DataType.FLOAT16)
    angles = []
    value = cast.inputs[0]
    while value.producer() is not None:
        angles.append(value.producer().op_type)
        if value.producer().op_type == "Cast":
            assert value.producer().attributes.get_int("to") == ir.DataType.FLOAT
            break
        value = value.producer().inputs[0]
    assert angles[-1] == "Cast"
    assert {"Cos", "Mul"} <= set(angles)


@pytest.mark.parametrize(
    ("change", "graphs"),
    [
        (dynamic_cache.apply, ("vision", "compress")),
        (lambda model: static_cache.apply(model, capacity=8), ("vision", "compress")),
        (lambda model: fixed_flag.apply(model, name="merge", value=True), ("vision", "decoder")),
        (lambda model: fixed_flag.apply(model, name="per_head", value=True), ("compress",)),
        (full_sort.apply, ("vision", "decoder", "compress")),
        (function_bodies.apply, ("vision",)),
        (plugin_nodes.apply, ("vision",)),
    ],
    ids=["dynamic_cache", "static_cache", "fixed_flag", "another_flag", "full_sort", "bodies", "plugins"],
)
def test_graphs_without_the_pattern_stay(change, graphs, graphs_of):
    for graph in graphs:
        assert unchanged(ir.load(graphs_of("mistral") / f"{graph}.onnx"), change)


@pytest.mark.parametrize(
    "change",
    [
        dynamic_cache.apply,
        function_bodies.apply,
        plugin_nodes.apply,
        lambda m: static_cache.apply(m, capacity=8),
    ],
)
def test_a_second_time_finds_nothing(change, graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    assert change(model) > 0
    before = serialized(model)
    change(model)
    assert serialized(model) == before


@pytest.mark.parametrize(("attribute", "value"), [("mode", "circular"), ("axis", 1)])
def test_other_scatters_stay(attribute, value, graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    node = next(node for node in model.graph if node.op_type == "TensorScatter")
    node.attributes.update({attribute: ir.convenience.convert_attribute(attribute, value)})
    assert dynamic_cache.apply(model) == 2 * LAYERS - 1


def test_a_cache_that_is_read_twice_is_not_updated_in_place(graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    cache = next(value for value in model.graph.inputs if value.name == "key_cache.1")
    shape = ir.node("Shape", [cache])
    model.graph.append(shape)
    model.graph.outputs.append(shape.outputs[0])
    assert unchanged(model, lambda changed: static_cache.apply(changed, capacity=8))


def inlined():
    model = evict_model(per_head=True, merge=False)
    function_bodies.apply(model)
    return model


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sort: sort.attributes.update({"largest": ir.AttrInt64("largest", 0)}),
        lambda sort: sort.attributes.update({"axis": ir.AttrInt64("axis", 1)}),
        lambda sort: sort.graph.outputs.append(sort.outputs[0]),
        lambda sort: sort.graph.append(ir.node("Identity", [sort.outputs[1]])),
    ],
    ids=["smallest", "another axis", "values read", "order read"],
)
def test_other_sorts_stay(spoil):
    model = inlined()
    spoil(next(node for node in model.graph if node.op_type == "TopK"))
    assert unchanged(model, full_sort.apply)


def test_weights_beyond_float16_are_told(tmp_path):
    from vlkv.errors import EngineError
    from vlkv_export.checkpoint import Tensor

    (tmp_path / "w").write_bytes(np.array([1, 65519.9, np.inf, -7e4], np.float32).tobytes())
    tensors = {"w": Tensor("w", "w", "float32", (4,), 0, 16)}
    with pytest.raises(EngineError, match=r"w holds 7e\+04, above float16's 65504; use --dtype bfloat16"):
        write_weights(tmp_path, tmp_path / "out", tensors, set(), dtype="float16")
    tensors = {"w": Tensor("w", "w", "float32", (3,), 0, 12)}
    placed = write_weights(tmp_path, tmp_path / "out", tensors, set(), dtype="float16")["w"]
    written = np.fromfile(tmp_path / "out", np.float16, 3, offset=placed.offset)
    np.testing.assert_array_equal(written, np.array([1, 65504, np.inf], np.float16))
