"""ONNX Runtime's engines for CUDA, in 16 bits, over a device of host memory: the CPU's provider, emulated kernels."""

from __future__ import annotations

from collections import Counter
from functools import cache

import onnx_ir as ir
import pytest

from backend.host_device import HostDevice
from vlkv import Engine, Question
from vlkv.backend.onnxruntime_device import device_backend
from vlkv.errors import EngineError
from vlkv.model import Model
from vlkv.storage.manifest import read
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

SHAPE = "llama-gqa-tied"
CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def built(graphs_of, tmp_path_factory):
    """Engine directories by operators and dtype."""
    base = tmp_path_factory.mktemp("device-engines")

    @cache
    def make(operators, dtype):
        folder = base / f"{operators}-{dtype}"
        settings = Settings(dtype=dtype, capacity=128, batch=3, chunk=64)
        build_engine(graphs_of(SHAPE), folder, operators=operators, settings=settings)
        return folder

    return make


@pytest.fixture(scope="module")
def opened(built, request):
    """Engines on a device of host memory, by operators."""

    @cache
    def make(operators):
        folder = built(operators, "float16")
        facts = read(folder)
        library = request.getfixturevalue("emulated") if operators == "native" else None
        found = device_backend(folder, facts, HostDevice(), "cpu", CPU, library=library)
        return Engine(folder, Model.of(folder, facts, found))

    return make


@pytest.mark.parametrize("policy", ["full", "vl-cache", "h2o", "elastic"])
def test_answers_of_functions(policy, opened, engine_of, pictures):
    """Compares 16 bits on the device with float32 on the CPU: the tiny checkpoint's choices are far apart."""
    compare(opened("functions"), engine_of(SHAPE), policy, [str(pictures[0])], 8)


@pytest.mark.parametrize("policy", ["vl-cache", "h2o"])
def test_answers_of_operators(policy, opened, engine_of):
    """The same with vlkv's operators; the emulation is slow, so that prompt and answer are short."""
    compare(opened("native"), engine_of(SHAPE), policy, [], 2)


@pytest.mark.parametrize("policy", ["full", "vl-cache", "h2o", "elastic"])
def test_answers_with_caches_of_8_bits(policy, graphs_of, tmp_path, engine_of, pictures):
    """A code with a scale per channel: half the bytes, and the tokens of the tiny checkpoint, which are far apart."""
    folder, settings = tmp_path / "e", Settings(dtype="float16", capacity=128, batch=3, chunk=64)
    build_engine(graphs_of(SHAPE), folder, operators="functions", kv_dtype="int8", settings=settings)
    facts = read(folder)
    found = device_backend(folder, facts, HostDevice(), "cpu", CPU)
    engine = Engine(folder, Model.of(folder, facts, found))
    compare(engine, engine_of(SHAPE), policy, [str(pictures[0])], 8, smaller=4)


def compare(engine, reference, policy, images, tokens, smaller=2):
    budget = None if policy == "full" else 0.5
    question = Question("what is the total", images, policy=policy, budget=budget, max_new_tokens=tokens)
    want = reference.generate_batch([question])[0]
    got = engine.generate_batch([question])[0]
    assert got.token_ids == want.token_ids
    assert got.kept_tokens == want.kept_tokens
    assert got.cache_bytes * smaller == want.cache_bytes


def test_the_caches_are_of_16_bits(built):
    for operators in ("native", "functions"):
        for dtype in ("float16", "bfloat16"):
            facts = read(built(operators, dtype))
            assert (facts.cache_dtype, facts.weights, facts.operators) == (dtype, dtype, operators)
            assert facts.device.cache == "in-place"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("operators", ["native", "functions"])
def test_what_the_graphs_hold(operators, dtype, built):
    """Each layer's attention and score is one node of that dtype; nothing of the cache is of another."""
    folder = built(operators, dtype)
    layers, wanted = read(folder).text.layers, ir.DataType[dtype.upper()]
    name = {"float16": "Float16", "bfloat16": "BFloat16"}[dtype]
    decoder = ir.load(folder / "decoder.onnx")
    kinds = Counter(node.op_type for node in decoder.graph)
    assert not {"TensorScatter", "Attention"} & set(kinds)
    if operators == "native":
        assert (kinds[f"DeviceAttend{name}"], kinds[f"DeviceScore{name}"]) == (layers, layers)
        assert not decoder.functions
    else:
        assert (kinds["GroupQueryAttention"], kinds["Score"]) == (layers, layers)
    values = [v for v in (*decoder.graph.inputs, *decoder.graph.outputs) if "_cache." in v.name]
    assert {value.dtype for value in values} == {wanted}
    assert len(values) == 4 * layers
    for graph, merges in (("compress", 0), ("compress_merge", 1)):
        (node,) = [n for n in ir.load(folder / f"{graph}.onnx").graph if "Evict" in n.op_type]
        assert node.op_type == (f"DeviceEvict{name}" if operators == "native" else "Evict")
        assert node.attributes.get_int("merge") == merges


def test_the_cpu_refuses_them(built):
    with pytest.raises(EngineError, match=r"computes in bfloat16 for GPUs: open it with --device cuda"):
        Engine.load(built("native", "bfloat16"))


def test_a_graph_that_cannot_be_opened_is_one_line(built):
    folder = built("native", "float16")
    with pytest.raises(
        EngineError, match=r"compress.onnx can't be opened by ONNX Runtime .*DeviceEvictFloat16"
    ) as told:
        device_backend(folder, read(folder), HostDevice(), "cpu", CPU)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "options", "wanted"),
    [
        ({"dtype": "float32"}, {}, "--dtype float32: on --backend onnxruntime it is float16 or bfloat16"),
        ({"capacity": 9}, {}, "--dtype is missing: on --backend onnxruntime"),
        ({"dtype": "float16", "compute_capabilities": ("8.9",)}, {}, "--compute-capability is TensorRT's"),
        ({"dtype": "float16", "cache": "dynamic"}, {}, "--cache dynamic is TensorRT's"),
        ({"dtype": "float16"}, {"weights": "int8"}, "--weights int8 is for CPUs; --dtype float16"),
        ({"dtype": "float16"}, {"kv_dtype": "int8"}, "--kv-dtype int8 goes with --operators functions"),
        ({"dtype": "float16", "capacity": 10**9}, {}, r"--capacity 1000000000 is outside 1\.\."),
        ({"dtype": "float16", "batch": 0}, {}, r"--max-batch 0 is outside 1\.\.1024"),
        ({"dtype": "float16", "chunk": 0}, {}, r"--chunk 0 is outside 1\.\."),
    ],
)
def test_options_that_do_not_go_together(settings, options, wanted, graphs_of, tmp_path):
    with pytest.raises(EngineError, match=wanted):
        build_engine(graphs_of(SHAPE), tmp_path / "e", settings=Settings(**settings), **options)
    assert not (tmp_path / "e").exists()
