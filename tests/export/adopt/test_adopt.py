"""`vlkv adopt` on graphs that onnxruntime-genai and Optimum exported: the tokens of the checkpoint they came from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest

from export.adopt.conftest import EXPORTED, TINY, VOCAB
from small_disk import needs_mount, small_disk
from vlkv import Engine, Question
from vlkv.errors import CheckpointError, EngineError, ImageError
from vlkv_export.adopt import check
from vlkv_export.adopt.directory import adopt_folder
from vlkv_export.adopt.folder import read_folder
from vlkv_export.engine import build_engine

PROMPTS = ("the total is", "a form of the city of names and numbers: 1 2 3 4 5 6 7 8", "x")
NEW = 16


def adopted(one, tmp_path, **settings) -> Engine:
    adopt_folder(one.folder, tmp_path / "graphs", **settings)
    build_engine(tmp_path / "graphs", tmp_path / "engine")
    return Engine.load(tmp_path / "engine")


def tokens(engine: Engine, prompt: str, policy: str = "full", **settings) -> list[int]:
    return engine.generate(prompt, raw=True, policy=policy, max_new_tokens=NEW, **settings).token_ids


def reference(checkpoint, prompt: str, precision: str = "fp32") -> list[int]:
    """Greedy tokens of transformers, which computes in float32 with weights of that precision."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)
    if precision == "fp16":
        model = model.half().float()
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(prompt).ids
    out = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return list(out[0, len(ids) :].tolist())


@pytest.mark.parametrize(
    ("exporter", "kind", "precision"),
    [(exporter, *one) for exporter, ones in EXPORTED.items() for one in ones if one[1] != "int4"],
)
def test_greedy_tokens_are_those_of_the_checkpoint(exported, tmp_path, exporter, kind, precision):
    one = exported(exporter, kind, precision)
    engine = adopted(one, tmp_path)
    for prompt in PROMPTS:
        assert tokens(engine, prompt) == reference(one.checkpoint, prompt, precision)


@pytest.mark.parametrize(("kind", "precision"), [("llama", "int4"), ("llama-tied", "int4")])
def test_greedy_tokens_of_4_bit_weights_are_those_of_the_original_graph(exported, tmp_path, kind, precision):
    """In ONNX Runtime, the prompt in one call and then a token a call."""
    one = exported("genai", kind, precision)
    engine = adopted(one, tmp_path)
    for prompt in PROMPTS:
        assert tokens(engine, prompt) == original(one, engine, prompt)


def original(one, engine, prompt: str) -> list[int]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(one.folder / "model.onnx"))
    inputs = {value.name: value.type for value in session.get_inputs()}
    past = [name for name in inputs if name.startswith("past")]
    caches = dict.fromkeys(past, np.zeros((1, 2, 0, 16), np.float32))
    made = [name.replace("past_key_values", "present") for name in past]
    ids = engine.prompt(Question(prompt, raw=True)).token_ids.tolist()
    found: list[int] = []
    done = 0
    while len(found) < NEW and (not found or found[-1] != 2):
        end = done + len(ids)
        given = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(done, end)[None],
        }
        logits, *rest = session.run(
            ["logits", *made], {name: value for name, value in given.items() if name in inputs} | caches
        )
        caches, done = dict(zip(past, rest, strict=True)), end
        ids = [int(logits[0, -1].argmax())]
        found += ids
    return found


def test_policies_weights_and_batches_apply(exported, tmp_path):
    """An adopted engine is an engine as any other."""
    one = exported("genai", "llama", "fp32")
    engine = adopted(one, tmp_path)
    whole = engine.generate(PROMPTS[1] * 6, raw=True, policy="shared-question", budget=0.2, max_new_tokens=4)
    assert max(whole.kept_tokens) < whole.prompt_tokens / 2
    together = engine.generate_batch(
        [Question(prompt, raw=True, policy="full", max_new_tokens=NEW) for prompt in PROMPTS]
    )
    assert [answer.token_ids for answer in together] == [tokens(engine, prompt) for prompt in PROMPTS]
    for weights in ("bfloat16", "int8", "int4"):
        build_engine(tmp_path / "graphs", tmp_path / weights, weights=weights)
        assert Engine.load(tmp_path / weights).generate(PROMPTS[0], raw=True, max_new_tokens=2).token_ids
    with pytest.raises(ImageError, match="takes text alone"):
        engine.generate("what", images=["a.png"])


def changed(one, tmp_path, change) -> None:
    """The export with its graph changed."""
    folder = tmp_path / "changed"
    shutil.copytree(one.folder, folder)
    model = ir.load(folder / "model.onnx")
    change(model)
    ir.save(model, folder / "model.onnx")
    adopt_folder(folder, tmp_path / "graphs")


def node(model: ir.Model, kind: str) -> ir.Node:
    return next(one for one in model.graph if one.op_type == kind)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "softcap",
            lambda n: n.attributes.__setitem__("softcap", ir.AttrFloat32("softcap", 30.0)),
            "softcap 30.0",
        ),
        (
            "heads",
            lambda n: n.attributes.__setitem__("num_heads", ir.AttrInt64("num_heads", 2)),
            r"\(2, 2\) heads",
        ),
        ("operator", lambda n: setattr(n, "op_type", "PagedAttention"), "PagedAttention.*expected"),
    ],
)
def test_what_is_not_recognised_is_refused_by_name(exported, tmp_path, name, change, message):
    one = exported("genai", "llama", "fp32")
    with pytest.raises(CheckpointError, match=message) as refused:
        changed(one, tmp_path, lambda model: change(node(model, "GroupQueryAttention")))
    assert "layers.0/attn/GroupQueryAttention" in str(refused.value)
    assert not (tmp_path / "graphs").exists()


def test_edge_llms_plugin_is_refused_by_name(tmp_path):
    """A graph by hand, with the plugin's published inputs and attributes: no exporter of it can be installed here."""
    folder = tmp_path / "edge"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config |= {"hidden_size": 64, "vocab_size": VOCAB, "max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    names = ("qkv", "past_key_values.0", "context_lengths", "rope_rotary_cos_sin", "kvcache_start_index")
    inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names]
    numbers = {"num_q_heads": 4, "num_kv_heads": 2, "head_size": 16, "enable_tree_attention": 0}
    attributes = [ir.AttrInt64(name, number) for name, number in numbers.items()]
    node = ir.Node("trt", "AttentionPlugin", inputs, attributes, num_outputs=2, name="layers.0/attention")
    for value, name in zip(node.outputs, ("logits", "present_key_values.0"), strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
    imports = {"": 17, "trt": 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=imports, name="edge")
    ir.save(ir.Model(graph, ir_version=9), folder / "model.onnx")
    with pytest.raises(
        CheckpointError, match=r"layers.0/attention' \(AttentionPlugin\): .*Edge-LLM.*; expected com"
    ):
        adopt_folder(folder, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_a_graph_whose_positions_are_others_is_refused(exported, tmp_path):
    """The rewriting is right by its conditions; the comparison stands behind what they do not see."""
    from vlkv_export.adopt import decoder

    one = exported("genai", "llama", "fp32")
    with pytest.MonkeyPatch.context() as patch:
        attend = decoder.attend_over_cache

        def wrong(b, query, key, value, *rest):
            return attend(b, key if query is key else b.op.Mul(query, 2.0), key, value, *rest)

        patch.setattr(decoder, "attend_over_cache", wrong)
        with pytest.raises(CheckpointError, match="differ from the original's"):
            adopt_folder(one.folder, tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_bfloat16_caches_are_not_taken_for_float16(exported, tmp_path):
    """ONNX Runtime opens such a graph, and takes no bfloat16 from NumPy: what can not be compared is said."""
    folder = tmp_path / "changed"
    shutil.copytree(exported("genai", "llama", "fp32").folder, folder)
    model = ir.load(folder / "model.onnx")
    half, whole = ir.DataType.BFLOAT16, ir.DataType.FLOAT

    def cast(value: ir.Value, to: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": to})
        model.graph.append(node)
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
        return node.outputs[0]

    for value in model.graph.inputs:
        if value.name.startswith("past"):
            uses, made = list(value.uses()), cast(value, whole)
            for use in uses:
                use.node.replace_input_with(use.idx, made)
            value.type = ir.TensorType(half)
    for at, value in enumerate(model.graph.outputs):
        if value.name.startswith("present"):
            made = cast(value, half)
            made.name, value.name = value.name, f"{value.name}.whole"
            model.graph.outputs[at] = made
    model.graph.sort()
    ir.save(model, folder / "model.onnx")
    source = read_folder(folder)
    rows = np.zeros((check.PROMPT + 1, source.hidden), np.float32)
    with pytest.raises(CheckpointError, match=r"'past_key_values.0.key' is a tensor\(bfloat16\).*--no-check"):
        check.compare(source, tmp_path, rows, "bfloat16", False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "neither genai_config.json nor config.json"),
        (
            lambda folder: (folder.mkdir(), (folder / "genai_config.json").write_text("{}")),
            "has no model.onnx",
        ),
    ],
)
def test_folders_that_are_no_exports(tmp_path, make, message):
    make(tmp_path / "folder")
    with pytest.raises(CheckpointError, match=message):
        adopt_folder(tmp_path / "folder", tmp_path / "graphs")


def test_the_vocabulary_is_that_of_the_configuration(exported, tmp_path):
    one = exported("genai", "llama", "fp32")
    folder = tmp_path / "wrong"
    shutil.copytree(one.folder, folder)
    path = folder / "genai_config.json"
    path.write_text(path.read_text().replace(f'"vocab_size": {VOCAB}', '"vocab_size": 321'))
    with pytest.raises(CheckpointError, match=r"the configuration says \[321, 64\]"):
        adopt_folder(folder, tmp_path / "graphs")


@needs_mount
def test_a_full_disk_leaves_nothing(exported, tmp_path):
    one = exported("genai", "llama", "fp32")
    with small_disk(tmp_path / "small", 16) as small:
        with pytest.raises((OSError, EngineError), match="No space left on device"):
            adopt_folder(one.folder, small / "graphs")
        assert list(small.iterdir()) == []
