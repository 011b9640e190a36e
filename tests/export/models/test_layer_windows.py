"""Which layers see how many tokens, from the fields of transformers' configurations."""

from __future__ import annotations

import pytest

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.models.text import llama, mistral, qwen2, qwen3

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ON = {"use_sliding_window": True, "sliding_window": 32}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]


def windows(module, **fields):
    text = Fields(SIZES | fields, "config.json: text_config")
    return module.MODEL.read(Fields({}, "config.json"), text).windows


def test_windows_of_layers():
    assert windows(mistral, sliding_window=32) == (32,) * 4
    assert (
        windows(mistral, sliding_window=None) == windows(mistral) == windows(llama, sliding_window=32) == ()
    )
    assert windows(mistral, sliding_window=512) == ()
    for module in (qwen2, qwen3):
        assert windows(module, **ON, max_window_layers=3) == (0, 0, 0, 32)
        assert windows(module, **ON, max_window_layers=0) == (32,) * 4
        assert windows(module, **ON) == windows(module, sliding_window=32, max_window_layers=0) == ()
        assert windows(module, **ON, layer_types=TYPES) == (0, 32, 0, 32)
        assert windows(module, use_sliding_window=True, sliding_window=None, max_window_layers=0) == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({**ON, "sliding_window": 1, "max_window_layers": 0}, "an integer from 2"),
        ({**ON, "layer_types": TYPES[:3]}, "each of the 4 layers"),
        ({**ON, "layer_types": [*TYPES[:3], "chunked_attention"]}, "is not supported"),
        ({"layer_types": TYPES, "sliding_window": 32}, "use_sliding_window is false"),
        ({**ON, "max_window_layers": -1}, "max_window_layers"),
    ],
)
def test_refusals(fields, said):
    with pytest.raises(CheckpointError, match=said):
        windows(qwen2, **fields)
