"""Compares the model of a GPU's times with values worked out by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "examples" / "benchmark" / "roofline.py"


@pytest.fixture(scope="module")
def roofline():
    import sys

    spec = importlib.util.spec_from_file_location("roofline", PLACE)
    module = sys.modules["roofline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["roofline"]


@pytest.fixture
def small(roofline):
    """Two layers of hidden 8, four heads of 2 numbers, one KV head, intermediate 16, ten words."""
    return roofline.Model("small", "7B (8 KV heads)", 2, 8, 4, 1, 16, 10)


def test_sizes(small):
    # a layer: q and o 8 x 8, k and v 8 x 2, gate, up and down 8 x 16
    assert small.weights == 2 * (2 * 64 + 2 * 16 + 3 * 128) + 80
    assert small.slot == 2 * 1 * 2 * 2
    # two bytes a weight, two layers of 8 bytes a token
    assert small.memory(10, 3) == 2 * 1168 + 3 * 10 * 2 * 8
    assert small.at_once(10, 2 * 1168 + 500) == 3
    assert small.at_once(10, 2000) == 0


def test_times(roofline, small):
    device = roofline.Device("d", copy=100.0, matrix=1000.0)
    assert roofline.prefill(small, device, 50) == pytest.approx(
        (2 * 1168 * 50 + 2 * 2 * 2 * 8 * 50**2 / 2) / 1000
    )
    assert roofline.step(small, device, 30, 3) == pytest.approx((2 * 1168 + 3 * 30 * 2 * 8) / 100)
    # Score: 4 bytes of 50 keys take less than 2 * 2 * 64 * 8 * 50 operations; Evict moves 10 slots twice
    assert roofline.compress(small, device, 50, 0.2) == pytest.approx(2 * (102.4 + 2 * 8 * 10 / 100))
    found = roofline.line(small, device, 50, 3, 0.2, 10)
    full, kept = roofline.step(small, device, 55, 3), roofline.step(small, device, 15, 3)
    assert found["decoding"] == pytest.approx(full / kept)
    assert found["GB, full / kept"] == f"{small.memory(60, 3) / 1e9:.3g} / {small.memory(20, 3) / 1e9:.3g}"
    assert found["fits"] == "yes / yes"
    first, cut = 3 * roofline.prefill(small, device, 50), 3 * roofline.compress(small, device, 50, 0.2)
    assert found["10 tokens, end to end"] == pytest.approx((first + 10 * full) / (first + cut + 10 * kept))


def test_a_measured_file(roofline, small, tmp_path, capsys):
    results = [
        {"kernel": "score", "model": small.measured, "slots": slots, "dtype": dtype, "milliseconds": time}
        for slots, dtype, time in ((10, "float16", 1e6), (30, "float16", 3e6), (10, "float32", 9e9))
    ]
    rates = {"copy": 0.1, "torch.float16": 1.0}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"device": "card", "rates_per_ms": rates, "results": results}))
    device = roofline.device_of(path)
    assert (device.name, device.copy, device.matrix) == ("card", 100.0, 1000.0)
    assert device.kernel("score", small, 20, 5.0) == pytest.approx(2000.0)
    assert device.kernel("score", small, 20, 9000.0) == 9000.0
    assert device.kernel("evict", small, 20, 5.0) == 5.0
    roofline.main([str(path), "--prompt-tokens", "2048", "--batch", "1"])
    text = capsys.readouterr().out
    assert text.startswith("MODEL, not a measurement: card, 10% kept\n")
    assert len(text.strip().splitlines()) == 2 + 2 + len(roofline.MODELS)
