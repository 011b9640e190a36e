"""LoRA adapters merged at export, beside transformers with the sums written out."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import families
from vlkv import Engine
from vlkv.errors import CheckpointError
from vlkv_export.checkpoint import adapter
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

BASE = "llava-siglip-qwen2"
STEPS = 24
TEXT = "<image> what is the total w0 w1 w2"
CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "some/llava",
    "r": 4,
    "lora_alpha": 10,
    "bias": "none",
    "target_modules": ["q_proj", "down_proj", "linear_1"],
    "init_lora_weights": True,
    "modules_to_save": None,
    "use_dora": False,
}
CASES = {
    "plain": (CONFIG, {}),
    "rank-stabilised": (CONFIG | {"use_rslora": True}, {}),
    "patterns": (
        CONFIG | {"rank_pattern": {r"layers\.1\.mlp\.down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"layers.1.mlp.down_proj": 2},
    ),
}
TARGETS = ("q_proj", "down_proj", "linear_1")


def adapt(plain, merged, folder, config, ranks, seed=0):
    """Random LoRA matrices in `folder`; `merged` becomes a copy of `plain` with the sums, in float64."""
    rng = np.random.default_rng(seed)
    shutil.copytree(plain, merged)
    tensors, lora = load_file(plain / "model.safetensors"), {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or not module.endswith(TARGETS) or "vision_tower" in name:
            continue
        rank = next((n for ending, n in ranks.items() if module.endswith(ending)), config["r"])
        alpha = 3 if "alpha_pattern" in config and module.endswith("q_proj") else config["lora_alpha"]
        a = rng.normal(size=(rank, tensor.shape[1])).astype(np.float32) * 0.1
        b = rng.normal(size=(tensor.shape[0], rank)).astype(np.float32) * 0.1
        lora |= {f"base_model.model.{module}.lora_{half}.weight": x for half, x in (("A", a), ("B", b))}
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        tensors[name] = (tensor + scale * (b.astype(np.float64) @ a)).astype(np.float32)
    assert len(lora) == 2 * (2 * 2 + 1)
    save_file(tensors, merged / "model.safetensors", {"format": "pt"})
    folder.mkdir(exist_ok=True)
    save_file(lora, folder / adapter.WEIGHTS)
    (folder / adapter.CONFIG).write_text(json.dumps(config))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("adapters")
    plain = families.build(BASE, base / "base")

    @cache
    def make(case):
        folder = base / case
        folder.mkdir()
        config, ranks = CASES[case]
        adapt(
            plain,
            folder / "merged",
            folder / "alone",
            config | {"base_model_name_or_path": str(plain)},
            ranks,
        )
        return folder, families.Reference(BASE, folder / "merged")

    return make


def answer(checkpoint, folder):
    export_checkpoint(checkpoint, folder / "graphs")
    build_engine(folder / "graphs", folder / "engine")
    return Engine.load(folder / "engine", threads=1, verify=False)


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_logits_are_those_of_the_sums(case, made, prefilled, tolerance, tmp_path):
    folder, reference = made(case)
    pictures = [families.picture("odd")]
    inputs = reference.inputs(TEXT, pictures)
    want = reference.generate(inputs, STEPS)
    logits = reference.forced(inputs, want)
    engine = answer(folder / "alone", tmp_path)
    fields = {"raw": True, "policy": "full", "max_new_tokens": STEPS}
    got = prefilled(engine, TEXT, pictures, **fields).forced(want)
    np.testing.assert_allclose(got, logits, rtol=0, atol=tolerance(logits))
    assert engine.generate(TEXT, pictures, **fields).token_ids == want


def test_beside_its_base(made, tmp_path):
    folder, reference = made("plain")
    both = tmp_path / "both"
    shutil.copytree(families.build(BASE, folder.parent / "base"), both)
    for name in (adapter.CONFIG, adapter.WEIGHTS):
        shutil.copy(folder / "alone" / name, both / name)
    want = reference.generate(reference.inputs(TEXT, [families.picture("odd")]), STEPS)
    engine = answer(both, tmp_path)
    result = engine.generate(TEXT, [families.picture("odd")], raw=True, policy="full", max_new_tokens=STEPS)
    assert result.token_ids == want


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"base_model_name_or_path": "some/llava"}, "'some/llava' is no folder of a checkpoint here"),
        ({"r": 5}, "has rank 4, the configuration says 5"),
        ({"rank_pattern": {"(": 3}}, "which is none"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern"),
    ],
)
def test_refusals(change, said, made, tmp_path):
    folder, _ = made("plain")
    shutil.copytree(folder / "alone", tmp_path / "a")
    config = json.loads((tmp_path / "a" / adapter.CONFIG).read_text()) | change
    (tmp_path / "a" / adapter.CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as raised:
        export_checkpoint(tmp_path / "a", tmp_path / "g")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "g").exists()


def test_parts_that_fit_nothing_are_refused(made, tmp_path):
    folder, _ = made("plain")
    shutil.copytree(folder / "alone", tmp_path / "a")
    path = tmp_path / "a" / adapter.WEIGHTS
    whole = load_file(path)
    first = next(name for name in whole if "lora_A" in name)
    second = first.replace("lora_A", "lora_B")
    for change, said in (
        ({first: None}, "no pair"),
        ({first: whole[first][:, 1:]}, "for a matrix"),
        ({second: np.full_like(whole[second], np.inf)}, "is not finite"),
        ({"base_model.model.x.lora_A.weight": whole[first]}, "is no matrix of this model's graphs"),
        ({"base_model.model.lm_head.weight": whole[first]}, "is no part of a LoRA matrix"),
    ):
        kept = {n: np.ascontiguousarray(t) for n, t in (whole | change).items() if t is not None}
        save_file(kept, path)
        with pytest.raises(CheckpointError, match=said):
            export_checkpoint(tmp_path / "a", tmp_path / "g")
    path.unlink()
    with pytest.raises(CheckpointError, match="without adapter_model"):
        export_checkpoint(tmp_path / "a", tmp_path / "g")
