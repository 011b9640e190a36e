"""The figures that `vlkv build` prints: of all options together, of each alone, and none where nothing was measured."""

from __future__ import annotations

import pytest

from vlkv_export import quality
from vlkv_export.quality import Figures, Row, figures, lines
from vlkv_export.targets.spec import KV_DTYPES, PRECISIONS
from vlkv_export.weights.registry import FORMATS


def test_the_shipped_figures_are_of_options_that_exist():
    found = figures()
    assert found.model
    assert found.processor
    assert len(found.date.split("-")) == 3
    for row in found.rows:
        assert row.weights in FORMATS
        assert row.precision in PRECISIONS
        assert row.cache in KV_DTYPES
        assert row.options
        assert row.tokens >= 1000
        assert 0.5 < row.agreement <= 1


@pytest.fixture
def measured(monkeypatch):
    rows = (
        Row("int8", "fixed16", "float32", 4000, 0.98765, 0.99, 0.0012, 0.003),
        Row("float32", "float32", "int8", 4000, 0.995, 0.99, -0.0001, 0.003),
        Row("int4", "fixed16", "int8", 3000, 0.96, 0.95, 0.02, 0.04),
        Row("int8", "bfloat16", "float32", 4000, 0.99, 0.99, 0.002, 0.003),
    )
    monkeypatch.setattr(quality, "figures", lambda: Figures("a model", "2026-01-02", "a processor", rows))


def test_a_measurement_of_all_options_comes_alone(measured):
    assert lines("int4", None, "int8") == [
        "--weights int4 --kv-dtype int8: first choices equal to float32's 96.00%, perplexity +2.00% "
        "(a model, 3,000 tokens, 2026-01-02)"
    ]


def test_a_missed_limit_is_said(measured):
    (line,) = lines("int8", None, None)
    assert line.endswith("; the limits of 99.0% and 0.3% are missed")
    assert "98.77%" in line


def test_options_that_were_measured_apart_have_a_line_each(measured):
    assert [line.split(":")[0] for line in lines("int8", "bfloat16", "int8")] == [
        "--weights int8 --prompt-precision bfloat16",
        "--kv-dtype int8",
    ]


def test_what_was_not_measured_is_not_told(measured):
    assert lines(None, None, None) == lines("float16", "float32", "bfloat16") == []
    assert [line.split(":")[0] for line in lines("float16", "bfloat16", "int8")] == ["--kv-dtype int8"]


def test_the_command_tells_it(vlkv, graphs_of, tmp_path):
    code, out, err = vlkv("build", graphs_of("llama"), "-o", tmp_path / "engine", "--weights", "int8")
    assert (code, out) == (0, "")
    assert err.splitlines() == [f"wrote {tmp_path / 'engine'}", *lines("int8", None, None)]
    options = "--weights", "float32", "--operators", "functions"
    code, _, err = vlkv("build", graphs_of("llama"), "-o", tmp_path / "other", *options)
    assert (code, err) == (0, f"wrote {tmp_path / 'other'}\n")
