"""Each lowering pass: how often it rewrites, what it must leave alone, and that results stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from models import onnx_runs, tiny
from vlkv.errors import EngineError
from vlkv.storage.manifest import read
from vlkv_export.models import read_checkpoint
from vlkv_export.passes import (
    float32,
    group_query_attention,
    multi_head_attention,
    native_attention,
    native_cache,
    observed_rows,
    recall,
    transposed_weights,
)
from vlkv_export.passes.edit import MICROSOFT
from vlkv_export.targets.onnxruntime import lower_for_onnxruntime
from vlkv_export.weights.convert import external, other_weights
from vlkv_export.weights.files import write_weights

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
LAYERS = 3
DECODER_WEIGHTS = LAYERS * 7 + 1
TOWER_LAYERS = {"llama": 2, "llama-gqa-tied": 3, "mistral": 2, "llama-biases": 3, "llama-old": 2}

shapes = pytest.mark.parametrize("name", tiny.SHAPES)
float32_shapes = pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "mistral"])
calls = pytest.mark.parametrize("call", onnx_runs.CALLS)


@pytest.fixture
def folder(graphs_of, tmp_path):
    return lambda name: onnx_runs.copied(graphs_of(name), tmp_path / "graphs")


def microsoft(change):
    """Returns the change, followed by a declaration of ONNX Runtime's own operators in the graph."""

    def changed(model):
        count = change(model)
        model.graph.opset_imports[MICROSOFT] = 1
        return count

    return changed


def count_nodes(path, op_type):
    return sum(node.op_type == op_type for node in ir.load(path).graph)


def unchanged(model, change):
    """Returns whether the change returns 0 and leaves every byte of the model as it was."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    return change(model) == 0 and ir.to_proto(model).SerializeToString(deterministic=True) == before


@shapes
@pytest.mark.parametrize("operators", ["native", "functions"])
def test_counts_of_a_whole_lowering(name, operators, folder, checkpoint_of):
    graphs = folder(name)
    models = {graph: ir.load(graphs / f"{graph}.onnx") for graph in ("vision", "decoder", "compress")}
    halves = other_weights(models, "float32")
    placed = write_weights(graphs, graphs / "all.safetensors", halves, set()) if halves else {}
    weights = {graph: external_count(model) for graph, model in models.items()}
    counts = lower_for_onnxruntime(models, {n: external(t) for n, t in placed.items()}, operators)
    half = tiny._SHAPES[name].dtype != "float32"
    native = operators == "native"
    # native products read stored weights; biases become float32 like everything else
    products = {"decoder": DECODER_WEIGHTS, "vision": 6 * TOWER_LAYERS[name] + 2}
    widened = {graph: weights[graph] - products[graph] * native if half else 0 for graph in products}
    assert counts["decoder"] == {
        **({"native_linear": DECODER_WEIGHTS} if native else {}),
        "float32": widened["decoder"],
        "group_query_attention": LAYERS,
        **(
            {"native_attention": LAYERS, "observed_rows": LAYERS, "recall": LAYERS}
            if native
            else {"within_window": LAYERS if name == "mistral" else 0}
        ),
        **({"fused_linear": 6 * LAYERS + 1} if native else {}),
        "transposed_weights": 0 if native else DECODER_WEIGHTS,
    }
    assert counts["vision"] == {
        **({"native_linear": products["vision"]} if native else {}),
        "float32": widened["vision"],
        "multi_head_attention": TOWER_LAYERS[name],
        **({"fused_linear": 2 * TOWER_LAYERS[name] - 1} if native else {}),
        "transposed_weights": 0 if native else products["vision"],
    }
    assert counts["compress"] == {
        **({"native_linear": 0} if native else {}),
        "float32": 0,
        **({"fused_linear": 0} if native else {}),
        "transposed_weights": 0,
    }
    assert max(read_checkpoint(checkpoint_of(name)).vision.feature_layers) == TOWER_LAYERS[name]


def external_count(model):
    return sum(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())


@float32_shapes
@calls
def test_group_query_attention(name, call, folder, rng):
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", microsoft(group_query_attention.apply))
    assert count == count_nodes(path, "GroupQueryAttention") == LAYERS
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before = onnx_runs.run(graphs / "decoder.onnx", feeds)
    after = onnx_runs.run(path, feeds)
    assert before.keys() == after.keys()
    onnx_runs.assert_decoders_agree(before, after, feeds)


def natively(model):
    """Lowers to ONNX Runtime's attention first, because only that becomes the native operator."""
    microsoft(group_query_attention.apply)(model)
    return native_attention.apply(model)


@float32_shapes
@calls
def test_native_attention(name, call, folder, rng):
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", natively)
    kind = "If" if name == "mistral" else "AttendFloat32"
    assert count == count_nodes(path, kind) == LAYERS
    assert count_nodes(path, "GroupQueryAttention") == 0
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before = onnx_runs.run(graphs / "decoder.onnx", feeds)
    onnx_runs.assert_decoders_agree(before, onnx_runs.run(path, feeds), feeds)


def test_native_attention_leaves_alone_what_rotates_or_masks(graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    microsoft(group_query_attention.apply)(model)
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            node.attributes.add(ir.AttrInt64("do_rotary", 1))
    assert unchanged(model, native_attention.apply)
    assert unchanged(ir.load(graphs_of("llama") / "vision.onnx"), native_attention.apply)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_recall(graphs_of, dtype):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    assert unchanged(model, recall.apply)
    observed_rows.apply(model)
    if dtype == "float32":
        natively(model)
    else:
        group_query_attention.apply(model)
        native_cache.apply(model, dtype=dtype)
    assert recall.apply(model) == LAYERS
    added = model.graph.inputs[-1]
    assert (added.name, added.dtype, len(added.shape)) == ("recall", ir.DataType.INT64, 1)
    found = [node for node in model.graph.all_nodes() if node.op_type in recall.OPERATORS]
    for node in found:
        layer = node.attributes.get_int("layer")
        assert node.inputs[3].name == f"key_cache.{layer}" and node.inputs[-1] is added
        assert len(node.inputs) == recall.OPERATORS[node.op_type] + 1
    assert sorted(node.attributes.get_int("layer") for node in found) == list(range(LAYERS))


def test_recall_needs_native_attention_in_every_layer(graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    natively(model)
    node = next(node for node in model.graph.all_nodes() if node.op_type == "AttendFloat32")
    node.domain = "others"
    assert unchanged(model, recall.apply)


@pytest.mark.parametrize(("dtype", "row"), [("bfloat16", 0), ("int8", 4)])
def test_native_cache(graphs_of, dtype, row):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    observed_rows.apply(model)
    group_query_attention.apply(model)
    sizes = {value.name: value.shape[3] for value in model.graph.inputs if "_cache." in value.name}
    assert native_cache.apply(model, dtype=dtype, many=1) == LAYERS
    assert not count(model, "GroupQueryAttention") and not count(model, "AttendFloat32")
    found = [node for node in model.graph if node.op_type == native_cache.OPERATORS[dtype]]
    assert [node.attributes.get_int("many") for node in found] == [1] * LAYERS
    for value in (*model.graph.inputs, *model.graph.outputs):
        if "_cache." in value.name:
            assert value.dtype == native_cache.TYPES[dtype]
            assert value.shape[3] == sizes[value.name.removeprefix("new_")] + row
    assert unchanged(
        ir.load(graphs_of("llama") / "vision.onnx"), lambda model: native_cache.apply(model, dtype=dtype)
    )


def test_native_cache_refuses_a_cache_that_another_node_reads(graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    group_query_attention.apply(model)
    with pytest.raises(
        EngineError, match=r"new_key_cache\.0 is read by Score; --kv-dtype int8 needs attention"
    ):
        native_cache.apply(model, dtype="int8")


def count(model, op_type):
    """Returns the number of nodes of a type in the main graph."""
    return sum(node.op_type == op_type for node in model.graph)


@float32_shapes
@calls
def test_transposed_weights_of_the_decoder(name, call, folder, rng):
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", microsoft(transposed_weights.apply))
    assert count == count_nodes(path, "FusedMatMul") == DECODER_WEIGHTS
    assert count_nodes(path, "MatMul") == 0
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before = onnx_runs.run(graphs / "decoder.onnx", feeds)
    onnx_runs.assert_decoders_agree(before, onnx_runs.run(path, feeds), feeds)


@float32_shapes
@pytest.mark.parametrize(
    ("change", "op_type", "each", "more"),
    [
        (multi_head_attention.apply, "MultiHeadAttention", 1, 0),
        (transposed_weights.apply, "FusedMatMul", 6, 2),
    ],
)
def test_passes_over_vision(name, change, op_type, each, more, folder, rng):
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "vision", microsoft(change))
    assert count == count_nodes(path, op_type) == each * TOWER_LAYERS[name] + more
    image = read(graphs).image
    pixels = {"pixel_values": rng.normal(size=(2, 3, image.height, image.width)).astype(np.float32)}
    before, after = (
        onnx_runs.run(graph, pixels)["image_features"] for graph in (graphs / "vision.onnx", path)
    )
    # one dot product of 588 terms, and about 10 of 30 to 100
    limit = 2 * onnx_runs.ROUNDOFF * 1500**0.5 * np.abs(before).max()
    np.testing.assert_allclose(after, before, rtol=0, atol=limit)


@float32_shapes
@calls
def test_observed_rows(name, call, folder, rng):
    graphs = folder(name)
    path, count = onnx_runs.changed(graphs, "decoder", observed_rows.apply)
    assert count == LAYERS
    text = read(graphs).text
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    before = onnx_runs.run(graphs / "decoder.onnx", feeds)
    after = onnx_runs.run(path, feeds)
    gone = {f"score.{layer}" for layer in range(LAYERS)} | {"sparsity"}
    queries = [f"query.{layer}" for layer in range(LAYERS)]
    assert after.keys() == (before.keys() - gone) | set(queries)
    onnx_runs.assert_decoders_agree(before, after, feeds)
    # the output rows give the same scores as the graph computed
    from vlkv import ops

    rows = feeds["row_index"]
    for layer, name_ in enumerate(queries):
        position = np.where(rows < 0, -1, feeds["length"][layer][:, None] + rows)
        assert after[name_].shape == (len(rows), text.query_heads, rows.shape[1], text.head_dim)
        score, sparsity = ops.score(after[name_], after[f"new_key_cache.{layer}"], position)
        np.testing.assert_allclose(score, before[f"score.{layer}"], atol=1e-5)
        np.testing.assert_allclose(sparsity, before["sparsity"][layer], atol=1e-3)
    feeds["row_index"] = np.zeros((len(rows), 0), np.int64)
    assert onnx_runs.run(path, feeds)["query.0"].shape == (len(rows), text.query_heads, 0, text.head_dim)


def test_float32_of_a_float16_graph(folder, rng):
    """Compares with the float16 graph, which ONNX Runtime runs by casting. They differ by float16's rounding."""
    graphs = folder("llama-old")
    model = ir.load(graphs / "decoder.onnx")
    halves = other_weights({"decoder": model}, "float32")
    placed = write_weights(graphs, graphs / "all.safetensors", halves, set())
    tensors = {name: external(tensor) for name, tensor in placed.items()}
    path, count = onnx_runs.changed(graphs, "decoder", lambda m: float32.apply(m, converted=tensors))
    assert count == external_count(model) > DECODER_WEIGHTS
    wide = ir.load(path)
    values = [*wide.graph.inputs, *wide.graph.outputs, *wide.graph.initializers.values()]
    values += [value for node in wide.graph for value in node.outputs]
    assert not {value.dtype for value in values} & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    feeds = onnx_runs.decoder_feeds(read(graphs), "chunk", rng, np.float16)
    half = onnx_runs.run(graphs / "decoder.onnx", feeds)
    for name, array in feeds.items():
        if "cache" in name:
            feeds[name] = array.astype(np.float32)
    full = onnx_runs.run(path, feeds)
    assert full["new_key_cache.0"].dtype == np.float32 != half["new_key_cache.0"].dtype
    # 2^-11 for each of 1500 terms, at random, of the largest logit
    limit = 2.0**-11 * 1500**0.5 * np.abs(full["logits"]).max()
    np.testing.assert_allclose(half["logits"], full["logits"], rtol=0, atol=limit)
    assert np.abs(half["logits"] - full["logits"]).max() > 0


@pytest.mark.parametrize(
    ("change", "graphs"),
    [
        (group_query_attention.apply, ("vision", "compress")),
        (multi_head_attention.apply, ("decoder", "compress")),
        (observed_rows.apply, ("vision", "compress")),
        (transposed_weights.apply, ("compress",)),
        (lambda model: float32.apply(model, converted={}), ("vision", "decoder", "compress")),
    ],
    ids=["group_query", "multi_head", "observed_rows", "transposed", "float32"],
)
def test_graphs_without_the_pattern_stay(change, graphs, graphs_of):
    for graph in graphs:
        assert unchanged(ir.load(graphs_of("mistral") / f"{graph}.onnx"), change)


@pytest.mark.parametrize(
    "change", [group_query_attention.apply, multi_head_attention.apply, transposed_weights.apply]
)
def test_a_second_time_finds_nothing(change, graphs_of):
    for graph in ("vision", "decoder"):
        model = ir.load(graphs_of("llama") / f"{graph}.onnx")
        change(model)
        assert unchanged(model, change)


def attention(model):
    return [node for node in model.graph if node.op_type == "Attention"]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("is_causal", 1), ("softcap", 30.0), ("scale", 0.5), ("qk_matmul_output_mode", 1)],
)
def test_vision_attention_with_more_attributes_stays(attribute, value, graphs_of):
    model = ir.load(graphs_of("llama") / "vision.onnx")
    node = attention(model)[0]
    node.attributes.update({attribute: ir.convenience.convert_attribute(attribute, value)})
    assert multi_head_attention.apply(model) == TOWER_LAYERS["llama"] - 1
    assert attention(model) == [node]


def test_vision_attention_with_grouped_heads_stays(graphs_of):
    model = ir.load(graphs_of("llama") / "vision.onnx")
    for node in attention(model):
        node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 1)
    assert unchanged(model, multi_head_attention.apply)


@pytest.mark.parametrize(("attribute", "value"), [("is_causal", 1), ("softcap", 30.0)])
def test_cached_attention_with_more_attributes_stays(attribute, value, graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    node = attention(model)[1]
    node.attributes.update({attribute: ir.convenience.convert_attribute(attribute, value)})
    assert group_query_attention.apply(model) == LAYERS - 1
    assert attention(model) == [node]


@calls
def test_layers_around_one_that_stays_keep_their_own_lengths(call, folder, rng):
    graphs = folder("llama")

    def capped(model):
        node = attention(model)[0]
        node.attributes.update({"softcap": ir.convenience.convert_attribute("softcap", 2.0)})

    before, _ = onnx_runs.changed(graphs, "decoder", capped)
    before = before.rename(graphs / "capped.onnx")
    path, count = onnx_runs.changed(graphs, "capped", microsoft(group_query_attention.apply))
    assert count == LAYERS - 1
    feeds = onnx_runs.decoder_feeds(read(graphs), call, rng)
    found = onnx_runs.run(before, feeds)
    onnx_runs.assert_decoders_agree(found, onnx_runs.run(path, feeds), feeds)
    assert (found["logits"] != onnx_runs.run(graphs / "decoder.onnx", feeds)["logits"]).any()


def test_cached_attention_with_another_mask_stays(graphs_of):
    """The fused operator lets a row see all slots up to its own, so another mask would change the result."""
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    for node in attention(model):
        visible = node.inputs[3].producer()
        visible.op_type = "Less"
    assert unchanged(model, group_query_attention.apply)


def product(shape, perm, is_weight=True):
    """Returns a model of `x @ Transpose(w)` with x `[2, K]`."""
    inner = [shape[axis] for axis in perm][-2]
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape([2, inner]))
    tensor = ir.tensor(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), name="w")
    weight = ir.Value(name="w", type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
    turned = ir.Value(name="turned")
    y = ir.Value(name="y", type=ir.TensorType(FLOAT))
    nodes = [
        ir.Node(
            "", "Transpose", [weight], ir.convenience.convert_attributes({"perm": perm}), outputs=[turned]
        ),
        ir.Node("", "MatMul", [x, turned], outputs=[y]),
    ]
    inputs = [x] if is_weight else [x, weight]
    graph = ir.Graph(inputs, [y], nodes=nodes, opset_imports={"": 24, MICROSOFT: 1}, name="product")
    if is_weight:
        weight.const_value = tensor
        graph.register_initializer(weight)
    return ir.Model(graph, ir_version=11)


def test_a_product_with_a_transposed_weight_is_the_same():
    model = product([3, 5], [1, 0])
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    results = []
    for expected in (None, 1):
        if expected is not None:
            assert transposed_weights.apply(model) == expected
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("shape", "perm", "is_weight"),
    [
        ([5, 3], [0, 1], True),
        ([4, 3, 5], [0, 2, 1], True),
        ([5, 4, 3], [1, 0, 2], True),
        ([3, 5], [1, 0], False),
    ],
    ids=["not turned", "rank 3", "other axes", "no weight"],
)
def test_other_products_stay(shape, perm, is_weight):
    assert unchanged(product(shape, perm, is_weight), transposed_weights.apply)
