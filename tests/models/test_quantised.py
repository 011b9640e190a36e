"""Checkpoints in codes, opened as they are, beside transformers with the same numbers as floats."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import families
from oracles import quantised
from vlkv import Engine
from vlkv.errors import CheckpointError, EngineError
from vlkv.storage.manifest import read
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

STEPS = 24
BASE = "llava-siglip-qwen2"
TEXT = "<image> what is the total w0 w1 w2"
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        }
    },
    "ignore": ["lm_head"],
}
GROUPED = json.loads(json.dumps(INT8))
GROUPED["config_groups"]["group_0"]["weights"] |= {"strategy": "group", "group_size": 32}
CASES = {
    "awq 32": AWQ | {"group_size": 32},
    "awq 64, floats among them": AWQ | {"group_size": 64},
    "awq 128": AWQ | {"group_size": 128},
    "awq of whole rows": AWQ | {"group_size": -1},
    "gptq 32": GPTQ | {"group_size": 32},
    "gptq v2": GPTQ | {"group_size": 32, "checkpoint_format": "gptq_v2"},
    "gptq 128, symmetric": GPTQ | {"group_size": 128, "sym": True},
    "gptq in act-order": GPTQ | {"group_size": 32, "desc_act": True},
    "gptq in act-order, floats among them": GPTQ | {"group_size": 64, "desc_act": True},
    "int8": INT8,
    "int8 32": GROUPED,
}


def quantise(plain, coded, config, seed=0):
    """Writes two checkpoints of the same random numbers: floats, and the codes that they are made of."""
    rng = np.random.default_rng(seed)
    tensors = load_file(plain / "model.safetensors")
    floats, codes = {}, {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("weight")
        if "language_model" not in name or not any(
            f".{part}_proj." in name for part in (*"qkvo", "gate", "up", "down")
        ):
            floats[name] = codes[name] = tensor
            continue
        if not name.endswith("weight"):
            floats[name] = codes[name] = tensor
            continue
        outputs, inputs = tensor.shape
        method = config["quant_method"]
        if method == "compressed-tensors":
            kind = config["config_groups"]["group_0"]["weights"]
            numbers, scales, values = quantised.int8(rng, outputs, inputs, kind.get("group_size", inputs))
            codes[name], codes[f"{stem}weight_scale"] = numbers, scales
        else:
            group = inputs if config["group_size"] == -1 else config["group_size"]
            offset = int(method == "gptq" and config.get("checkpoint_format") != "gptq_v2")
            symmetric, order = config.get("sym", False), config.get("desc_act", False)
            found = quantised.random_codes(rng, outputs, inputs, group, symmetric, order, offset)
            *parts, places, values = found
            packed = quantised.awq(*parts) if method == "awq" else quantised.gptq(*parts, places, offset)
            codes |= {stem + part: np.ascontiguousarray(array) for part, array in packed.items()}
        floats[name] = values.astype(np.float32)
        assert (floats[name] == values).all() or method == "compressed-tensors"
    for folder, given in ((plain, floats), (coded, codes)):
        if folder is coded:
            shutil.copytree(plain, coded)
        save_file(given, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((coded / "config.json").read_text()) | {"quantization_config": config}
    (coded / "config.json").write_text(json.dumps(settings))
    return coded


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("quantised")

    @cache
    def make(case):
        folder = base / case.replace(" ", "-")
        sizes = {"hidden_size": 128, "intermediate_size": 256} if "128" in case else {}
        family = families.FAMILIES[BASE]
        families.FAMILIES[case] = replace(family, text=family.text | sizes)
        try:
            plain = families.build(case, folder / "plain")
            coded = quantise(plain, folder / "coded", CASES[case])
            reference = families.Reference(case, plain)
        finally:
            del families.FAMILIES[case]
        export_checkpoint(coded, folder / "graphs")
        return folder, reference

    return make


def opened(folder, name="engine", **settings):
    if not (folder / name).exists():
        build_engine(folder / "graphs", folder / name, **settings)
    return Engine.load(folder / name, threads=1, verify=False)


def rounded(layers):
    """What rows in fixed point may change, as a share of the largest logit.

    A layer has four products in sequence. Each rounds a number by at most 2^-15.9 of the largest of its span of 32,
    which is at most sqrt(32) of the span's root mean square. Attention and norms may double it.
    """
    return 2 * 4 * layers * np.sqrt(32) * 2**-15.9


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_logits_are_those_of_the_floats(case, made, prefilled, tolerance):
    folder, reference = made(case)
    pictures = [families.picture("odd")]
    inputs = reference.inputs(TEXT, pictures)
    want = reference.generate(inputs, STEPS)
    logits = reference.forced(inputs, want)
    fields = {"raw": True, "policy": "full", "max_new_tokens": STEPS}
    for name, settings in {
        "exact": {"prompt_precision": "float32"},
        "widened": {"weights": "float32"},
        "functions": {"operators": "functions"},
    }.items():
        engine = opened(folder, name, **settings)
        got = prefilled(engine, TEXT, pictures, **fields).forced(want)
        np.testing.assert_allclose(got, logits, rtol=0, atol=tolerance(logits), err_msg=name)
        assert engine.generate(TEXT, pictures, **fields).token_ids == want
    got = prefilled(opened(folder, "kept"), TEXT, pictures, **fields).forced(want)
    kept = read(folder / "kept")
    np.testing.assert_allclose(got, logits, rtol=0, atol=rounded(kept.text.layers) * np.abs(logits).max())
    assert kept.weights == ("int8" if "int8" in case else "int4")
    assert not any("float32" in file for file in kept.files)


def test_codes_are_read_as_they_are(made):
    """4 bits a weight, a half a scale and a byte a zero; nothing else of the matrices is in the engine."""
    folder, _ = made("awq 32")
    opened(folder, "kept")
    (file,) = (folder / "kept").glob("matrices.*")
    assert file.read_bytes() == (folder / "graphs" / file.name).read_bytes()
    numbers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
    data = file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
    assert data == numbers // 2 + numbers // 32 * 3


def test_other_weights_are_refused(made):
    folder, _ = made("awq 32")
    for weights in ("int8", "int4", "bfloat16"):
        with pytest.raises(EngineError, match="are in 4 bits already; leave --weights out"):
            build_engine(folder / "graphs", folder / "refused", weights=weights)
    assert not (folder / "refused").exists()


def test_the_graph_directory_is_standard(made):
    """Any runtime multiplies the codes out; ONNX Runtime does."""
    import onnxruntime as ort

    folder, _ = made("gptq in act-order")
    session = ort.InferenceSession(
        str(folder / "graphs" / "decoder.onnx"), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    given = {}
    for value in session.get_inputs():
        sizes = {"B": 1, "S": 5, "W": 0}
        shape = [sizes.get(n, 8) if isinstance(n, str) else n for n in value.shape]
        given[value.name] = (
            rng.standard_normal(shape).astype(np.float32)
            if "float" in value.type
            else np.zeros(shape, np.int64)
        )
    given["position_ids"] = np.arange(5)[None]
    (logits,) = session.run(["logits"], given)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes' is not supported"),
        ({"quant_method": "fp8"}, "'fp8' is not supported"),
        (AWQ | {"bits": 8}, "bits 8 is not supported"),
        (AWQ | {"version": "gemv"}, "awq of version 'gemv'"),
        (AWQ | {"zero_point": False}, "zero_point false"),
        (AWQ | {"group_size": 0}, "group_size is 0"),
        (GPTQ | {"bits": 3, "group_size": 32}, "bits 3"),
        (GPTQ | {"checkpoint_format": "marlin"}, "gptq of format 'marlin'"),
        (INT8 | {"format": "float-quantized"}, "compressed-tensors of format 'float-quantized'"),
        (AWQ | {"group_size": 64}, "config.json makes it"),
        ("awq", "no object"),
    ],
)
def test_refusals(change, said, made, tmp_path):
    folder, _ = made("awq 32")
    shutil.copytree(folder / "coded", tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text()) | {"quantization_config": change}
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as raised:
        export_checkpoint(tmp_path / "c", tmp_path / "g")
    assert said.lower() in str(raised.value).lower() and "\n" not in str(raised.value)
    assert not (tmp_path / "g").exists()


def test_damaged_codes_are_refused(made, tmp_path):
    folder, _ = made("gptq in act-order")
    shutil.copytree(folder / "coded", tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    whole = load_file(path)
    index = next(name for name in whole if name.endswith("g_idx"))
    stem = index.removesuffix("g_idx")
    for change, said in (
        ({index: np.zeros_like(whole[index])}, "no order of groups"),
        ({index: whole[index] - 1}, "no order of groups"),
        ({f"{stem}scales": np.full_like(whole[f"{stem}scales"], np.nan)}, "not finite"),
        ({f"{stem}qzeros": None}, "qzeros is missing"),
    ):
        save_file({n: t for n, t in (whole | change).items() if t is not None}, path, {"format": "pt"})
        with pytest.raises(CheckpointError, match=said):
            export_checkpoint(tmp_path / "c", tmp_path / "g")
