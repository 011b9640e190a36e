"""`vlkv build --backend tensorrt-rtx` on real graphs without a GPU: whole directories, and refused builds."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from vlkv.cli.main import main
from vlkv.errors import EngineError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.storage.manifest import read, verify
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings
from vlkv_export.targets.tensorrt import engine, process
from vlkv_export.watch import Watch

LAYERS = 3
COMMON = {"vision", "decoder", "compress", "compress_merge"}


@pytest.fixture
def said(monkeypatch) -> dict:
    """Records the builder's messages about each graph that it builds."""
    heard: dict = {}
    build = process.build

    def listening(*arguments):
        done = build(*arguments)
        heard.update(done.graphs)
        return done

    monkeypatch.setattr(engine.process, "build", listening)
    return heard


def settings(**changes) -> Settings:
    return Settings(**{"compute_capabilities": ("8.9",), "capacity": 256, "chunk": 128} | changes)


def assert_whole(folder: Path, graphs: set[str]) -> None:
    """Asserts that every file is named and hashed, and that there are only engines, table, tokenizer and manifest."""
    facts = read(folder)
    verify(folder, facts)
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert names == set(facts.files)
    assert names == {f"{name}.engine" for name in graphs} | {
        "embedding.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    for name, file in facts.files.items():
        assert file.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("cache", ["dynamic", None])
def test_with_the_plugin(cache, builder, plugin, graphs_of, tmp_path, said):
    source = graphs_of("llama-gqa-tied")
    facts = build_engine(
        source, tmp_path / "e", builder, settings=settings(plugin=plugin, batch=3, cache=cache)
    )
    assert_whole(tmp_path / "e", COMMON)
    assert (facts.kind, facts.backend, facts.operators) == ("engine", "tensorrt-rtx", "native")
    assert facts.cache_dtype == "float16"
    assert facts.device.compute_capabilities == ("8.9",)
    assert (facts.device.capacity, facts.device.batch, facts.device.chunk) == (256, 3, 128)
    assert facts.versions["tensorrt-rtx"].startswith("1.")
    assert facts.device.cache == (cache or "in-place")
    scores = [name for name in said["decoder"]["plugins"] if "Score" in name]
    attends = [name for name in said["decoder"]["plugins"] if "Attention" in name]
    assert [name.split("/")[0] for name in scores] == [f"layer.{n}" for n in range(LAYERS)]
    assert len(attends) == (0 if cache else LAYERS)
    assert len(said["decoder"]["plugins"]) == len(scores) + len(attends)
    assert len(said["compress"]["plugins"]) == len(said["compress_merge"]["plugins"]) == 1
    assert said["vision"]["plugins"] == []
    for graph, layer in (
        ("decoder", b"VlkvScore"),
        ("compress", b"VlkvEvict"),
        ("compress_merge", b"VlkvEvict"),
    ):
        data = (tmp_path / "e" / f"{graph}.engine").read_bytes()
        assert layer in data
        # no node of the bodies is left
        assert "LOOP_OUTPUT" not in said[graph]["kinds"]
    assert said["decoder"]["kinds"].get("ATTENTION_INPUT", 0) == LAYERS - len(attends)
    if not cache:
        assert b"VlkvAttend" in (tmp_path / "e" / "decoder.engine").read_bytes()
        assert not {"SCATTER", "KV_CACHE_UPDATE"} & said["decoder"]["kinds"].keys()
    assert said["decoder"]["outputs"]["new_key_cache.0"] == [4, "HALF"]
    assert said["decoder"]["outputs"]["logits"] == [2, "FLOAT"]
    assert said["decoder"]["outputs"]["score.2"] == [3, "FLOAT"]
    assert said["decoder"]["outputs"]["sparsity"] == [2, "FLOAT"]
    ids = np.array([0, 5, 63, 5])
    rows = [TokenEmbedding(folder, read(folder).embedding).rows(ids) for folder in (source, tmp_path / "e")]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    ("name", "dtype", "cache", "wanted"),
    [
        ("llama-biases", None, "dynamic", "bfloat16"),
        ("mistral", "float32", "static", "float32"),
    ],
)
def test_with_bodies(name, dtype, cache, wanted, builder, graphs_of, tmp_path, said):
    facts = build_engine(
        graphs_of(name), tmp_path / "e", builder, settings=settings(dtype=dtype, cache=cache)
    )
    assert_whole(tmp_path / "e", COMMON | {"score"})
    assert (facts.operators, facts.cache_dtype, facts.device.cache) == ("functions", wanted, cache)
    assert not any(graph["plugins"] or graph["tf32"] for graph in said.values())
    assert all(graph["user_allocation"] for graph in said.values())
    kind = {"bfloat16": "BF16", "float32": "FLOAT"}[wanted]
    assert said["decoder"]["outputs"]["query.2"] == [4, kind]
    assert said["score"]["outputs"] == {"score": [3, "FLOAT"], "sparsity": [1, "FLOAT"]}
    assert said["compress"]["outputs"]["new_key"] == [4, kind]
    assert said["score"]["kinds"]["LOOP_OUTPUT"] > 0
    kinds = said["decoder"]["kinds"]
    assert (kinds.get("KV_CACHE_UPDATE", 0), kinds.get("SCATTER", 0)) == (
        (2 * LAYERS, 0) if cache == "static" else (0, 2 * LAYERS)
    )
    for graph in said.values():
        assert "TOPK" not in graph["kinds"]


def test_a_cache_longer_than_topk(builder, graphs_of, tmp_path):
    """TensorRT's TopK ends at 3840.

    With the sort in place the builder only warns, and the engine would fail at run time.
    """
    import onnx_ir as ir

    from vlkv.storage.manifest import DeviceFacts
    from vlkv_export.ops import compress_model
    from vlkv_export.passes import fixed_flag, function_bodies
    from vlkv_export.targets.tensorrt.lower import lower_for_tensorrt
    from vlkv_export.targets.tensorrt.shapes import profiles

    image = read(graphs_of("llama")).image
    device = DeviceFacts(compute_capabilities=("8.9",), capacity=4096, batch=1, chunk=8, cache="dynamic")

    def graph(model, name):
        ir.save(model, tmp_path / f"{name}.onnx")
        paths = {"onnx": str(tmp_path / f"{name}.onnx"), "engine": str(tmp_path / f"{name}.engine")}
        return {"name": name, "profiles": profiles("compress", model, device, image), **paths}

    sorting = compress_model(kv_heads=2, head_dim=16)
    fixed_flag.apply(sorting, name="merge", value=False)
    function_bodies.apply(sorting)
    with pytest.raises(EngineError, match="maximum value allowed"):
        process.build(builder, None, ("8.9",), [graph(sorting, "sorting")])
    source = graphs_of("llama")
    models = {name: ir.load(source / f"{name}.onnx") for name in ("vision", "decoder", "compress")}
    lower_for_tensorrt(models, {}, ir.DataType.FLOAT, "functions")
    built = process.build(builder, None, ("8.9",), [graph(models["compress"], "compress")])
    assert built.graphs["compress"]["bytes"] > 0


def test_the_command_line(builder, graphs_of, tmp_path, capfd):
    arguments = ["build", str(graphs_of("llama")), "-o", str(tmp_path / "e"), "--backend", builder]
    arguments += [
        "--compute-capability",
        "8.0",
        "--compute-capability",
        "12.0",
        "--capacity",
        "64",
        "--chunk",
        "32",
    ]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0, capfd.readouterr().err
    facts = read(tmp_path / "e")
    assert facts.device.compute_capabilities == ("8.0", "12.0")
    assert (facts.device.capacity, facts.device.batch, facts.device.chunk) == (64, 4, 32)


def refused(graphs: Path, target: Path, text: str, backend="tensorrt-rtx", operators=None, **changes) -> None:
    with pytest.raises(EngineError, match=text) as error:
        build_engine(graphs, target, backend, operators, settings=settings(**changes))
    assert "\n" not in str(error.value)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": "int8"}, "unknown --dtype 'int8'; known: float16, bfloat16, float32"),
        ({"cache": "paged"}, "unknown --cache 'paged'; known: dynamic, static, in-place"),
        ({"capacity": 0}, r"--capacity 0 is outside 1\.\.512"),
        ({"capacity": 10**6}, r"--capacity 1000000 is outside 1\.\.512"),
        ({"batch": 0}, "--max-batch 0 is outside 1"),
        ({"chunk": 0}, "--chunk 0 is below 1"),
        ({"compute_capabilities": ("7.5",), "dtype": "bfloat16"}, "7.5 has no bfloat16; use --dtype float16"),
        ({"plugin": Path("nowhere.so")}, "--plugin nowhere.so: no such file"),
        ({"operators": "native"}, "needs --plugin"),
        (
            {"cache": "in-place"},
            "--cache in-place needs --operators native and --plugin; dynamic takes any engine",
        ),
        ({"operators": "nodes"}, "unknown operators 'nodes'"),
    ],
)
def test_wrong_values(changes, text, graphs_of, tmp_path):
    refused(graphs_of("llama"), tmp_path / "e", text, **changes)


@pytest.mark.parametrize("wrong", [(), ("9.0",), ("8.9", "sm_86")])
def test_wrong_capabilities_list_the_right_ones(wrong, builder, graphs_of, tmp_path):
    text = "7.5, 8.0, 8.6, 8.9, 12.0"
    refused(graphs_of("llama"), tmp_path / "e", text, compute_capabilities=wrong)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_without_the_wheels(backend, graphs_of, tmp_path, monkeypatch):
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)
    text = rf"--backend {backend}: no package {backend.replace('-', '_')}; pip install 'vlkv\[{backend}\]'"
    refused(graphs_of("llama"), tmp_path / "e", text, backend)


def test_options_of_tensorrt_on_onnxruntime(graphs_of, tmp_path):
    refused(graphs_of("llama"), tmp_path / "e", "--dtype is missing: on --backend onnxruntime", "onnxruntime")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("import os; os.abort()", r"crashed \(signal 6\) while starting"),
        ("import sys; sys.exit('out of memory')", "ended with status 1 while starting: out of memory"),
        ("print('{\"step\": \"building x\"}', flush=True); import os; os.kill(os.getpid(), 11)",
         r"crashed \(signal 11\) while building x: it said nothing"),
        ("print('hello'); print('{\"error\": \"no room\"}')", "--backend tensorrt-rtx: no room"),
    ],
)  # fmt: skip
def test_a_builder_that_dies(script, text, builder, tmp_path, monkeypatch):
    """Starts a real process with a program that ends in the ways in which builders were seen to end."""
    (tmp_path / "dying.py").write_text("import sys; sys.stdin.read()\n" + script)
    monkeypatch.setattr(process.worker, "__name__", "dying")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(EngineError, match=text):
        process.build(builder, None)


def test_a_refusal_in_the_middle_leaves_nothing(builder, graphs_of, tmp_path):
    """The builder has no float32 products for compute capability 7.5, and Score's body needs them."""
    text = "the builder refuses score: .*FP32 GEMM is not supported"
    refused(graphs_of("llama"), tmp_path / "e", text, compute_capabilities=("7.5",), capacity=64, chunk=16)


def test_progress_is_told(builder, graphs_of, tmp_path):
    steps: list[str] = []
    build_engine(
        graphs_of("llama"),
        tmp_path / "e",
        builder,
        None,
        Watch(steps.append),
        settings(capacity=64, chunk=16),
    )
    assert [step for step in steps if step.startswith("building")] == [
        f"building {name}" for name in ("vision", "decoder", "compress", "compress_merge", "score")
    ]
    assert "converting the weights to float16" in steps
