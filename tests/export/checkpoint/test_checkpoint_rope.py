"""Compares the rotary frequencies of every supported type with transformers' own functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig, MistralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.rope import read_rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + step / 10 for step in range(64)],
    "long_factor": [4.0] * 64,
    "original_max_position_embeddings": 1024,
}
CASES: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "theta": {"rope_theta": 1e6},
    "parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "scaling null": {"rope_theta": 1e6, "rope_scaling": None},
    "linear, old key": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 131072},
    "llama3, parameters": {
        "rope_parameters": {**LLAMA3, "rope_theta": 5e5, "factor": 32},
        "max_position_embeddings": 131072,
    },
    "llama3, no original": {
        "rope_parameters": {
            key: value
            for key, value in {**LLAMA3, "rope_theta": 100.0}.items()
            if key != "original_max_position_embeddings"
        },
    },
    "original outside": {
        "rope_scaling": {**LLAMA3, "rope_theta": 5e5},
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_theta": 1e4, "rope_scaling": YARN},
    "yarn, attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.25}},
    "yarn, mscale": {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.1}},
    "yarn, one mscale": {"rope_scaling": {**YARN, "mscale": 0.707}},
    "yarn, betas": {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False}},
    "yarn, betas null": {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": None}},
    "yarn, one beta": {"rope_scaling": {**YARN, "beta_fast": 4, "beta_slow": 4, "truncate": False}},
    "yarn, short original": {"rope_scaling": {**YARN, "original_max_position_embeddings": 64}},
    "yarn, shorter original": {"rope_scaling": {**YARN, "original_max_position_embeddings": 4}},
    "yarn, no original": {"rope_scaling": {"rope_type": "yarn", "factor": 0.5}},
}
LONG_CASES: dict[str, dict[str, Any]] = {
    "of positions": {},
    "factor": {"factor": 8.0},
    "attention factor": {"attention_factor": 1.25},
    "no longer": {"factor": 0.5},
    "theta": {"rope_theta": 1e6},
}
ULP = 4
"""Rounding steps of float32. vlkv rounds powers of theta once, torch up to twice."""


def mine(values: dict[str, Any], head_dim: int):
    positions = values.get("max_position_embeddings", 4096)
    return read_rope(Fields(values, "config"), head_dim, positions)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head_dim", [16, 24, 128])
@pytest.mark.parametrize("mistral", [False, True])
def test_equals_transformers(case: str, head_dim: int, mistral: bool) -> None:
    values = {"max_position_embeddings": 4096, **CASES[case]}
    copied = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    make, embedding = (
        (MistralConfig, MistralRotaryEmbedding) if mistral else (LlamaConfig, LlamaRotaryEmbedding)
    )
    config = make(hidden_size=8 * head_dim, num_attention_heads=8, head_dim=head_dim, **copied)
    rotary = embedding(config)
    rope = mine(values, head_dim)
    assert rope.inv_freq.dtype == np.float32 and rope.inv_freq.shape == (head_dim // 2,)
    assert not rope.inv_freq.flags.writeable
    np.testing.assert_array_max_ulp(rope.inv_freq, rotary.inv_freq.numpy(), ULP)
    assert rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("length", [1, 100, 4096])
def test_dynamic_is_default_up_to_the_maximum(length: int) -> None:
    config = LlamaConfig(
        head_dim=64, max_position_embeddings=4096, rope_scaling={"rope_type": "dynamic", "factor": 4.0}
    )
    theirs, factor = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=length)
    rope = mine({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 64)
    np.testing.assert_array_max_ulp(rope.inv_freq, theirs.numpy(), ULP)
    assert factor == rope.attention_factor == 1.0


@pytest.mark.parametrize("case", LONG_CASES)
@pytest.mark.parametrize("head_dim", [16, 96])
def test_longrope_inside_the_trained_positions(case: str, head_dim: int) -> None:
    numbers = {name: LONG[name][: head_dim // 2] for name in ("short_factor", "long_factor")}
    values = {**LONG, **LONG_CASES[case], **numbers}
    config = LlamaConfig(
        hidden_size=8 * head_dim,
        num_attention_heads=8,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 1e4, **values},
    )
    theirs, factor = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=1024)
    rope = mine({"rope_scaling": values, "rope_theta": values.get("rope_theta", 1e4)}, head_dim)
    np.testing.assert_array_max_ulp(rope.inv_freq, theirs.numpy(), ULP)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-12)
    assert rope.positions == 1024


@pytest.mark.parametrize("short", [None, [], [1.0] * 7, [1.0] * 7 + [0], [1.0] * 7 + ["1"], 3])
def test_short_factors_that_are_wrong(short: Any) -> None:
    with pytest.raises(CheckpointError, match="short_factor"):
        mine({"rope_scaling": {**LONG, "short_factor": short}}, 16)


@pytest.mark.parametrize("kind", ["su", "mrope", "proportional", "axial"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_other_types_are_refused_by_name(kind: str, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{kind}' is not supported; supported: default, linear"):
        mine({"rope_scaling": {key: kind, "factor": 2.0}}, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_theta": 0}, "rope_theta is 0; it must be a number above 1"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor is -1"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be a JSON object"),
        ({"rope_scaling": {"type": "llama3", "factor": 2}}, "low_freq_factor is None"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_scaling": {**YARN, "beta_fast": -4}}, "beta_fast and beta_slow are -4 and 1"),
        ({"rope_scaling": {**YARN, "attention_factor": "x"}}, "attention_factor is 'x'"),
        ({"rope_scaling": {**YARN, "mscale": 1, "mscale_all_dim": "x"}}, "mscale_all_dim is 'x'"),
        (
            {"rope_scaling": {**YARN, "factor": math.e, "mscale": 1, "mscale_all_dim": -10}},
            "rope_parameters can't be computed: float division by zero",
        ),
    ],
)
def test_values_that_do_not_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        mine(values, 16)
