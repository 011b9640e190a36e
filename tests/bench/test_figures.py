"""Compares the figures that follow from runs with values worked out by hand. Also tests weight sizes and bandwidth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vlkv.bench.derive import amdahl, floor, ratios, row
from vlkv.bench.graph_bytes import weight_bytes
from vlkv.bench.measure import Cell, measure
from vlkv.bench.probe import Bandwidth, Peak
from vlkv.bench.report import Own, markdown, processor, table
from vlkv.bench.settings import Budget, Settings
from vlkv.bench.timing import EngineArm, Run
from vlkv.errors import BenchError, EngineError
from vlkv.ops.native import native


def a_run(first, steps, prefill=0.0, compress=0.0, read=0, bandwidth=(10.0, 30.0), tokens=()):
    return Run(
        first, steps, first + sum(steps), 0.0, prefill, compress, 7, read, 0, 9, bandwidth, [list(tokens)]
    )


CELL = Cell(
    1000,
    1,
    3,
    {
        "full cache": [a_run(2.0, [1.0, 3.0], 1.8, read=60, tokens=(1, 2)), a_run(6.0, [2.0, 2.0], 5.0)],
        "10% kept": [a_run(2.0, [0.5, 1.5], 1.9, 0.1, tokens=(1, 3)), a_run(7.0, [1.0, 1.0], 5.0, 0.5)],
    },
)


def test_a_floor_is_bytes_by_the_mean_bandwidth():
    assert floor(CELL.runs["full cache"][0], 140) == (140 + 60) / 20


def test_a_row():
    found = row(CELL, "full cache", 140)
    assert found["first_token_ms"] == 4000
    assert found["prefill_ms"] == 3400
    assert found["token_ms"] == 2000
    assert found["token_p95_ms"] == pytest.approx(2850)  # of 1, 2, 2, 3: 2 and 0.85 of the way to 3
    assert found["tokens_per_second"] == 0.5
    assert found["floor_ms"] == 8500  # of 10 s and 7 s
    assert found["over_floor"] == pytest.approx((2 / 10 + 2 / 7) / 2)
    assert (found["whole_ms"], found["cache_bytes"], found["peak_bytes"], found["bandwidth"]) == (
        8000,
        7,
        9,
        20,
    )
    silent = row(Cell(1, 1, 2, {"peer": [a_run(1.0, [1.0])]}), "peer", None)
    assert silent["prefill_ms"] is silent["compress_ms"] is silent["floor_ms"] is None


def test_tokens_per_second_are_those_of_the_batch():
    runs = [a_run(1.0, [0.5, 0.5]), a_run(1.0, [0.25, 0.25]), a_run(1.0, [1.0, 1.0])]
    assert row(Cell(10, 4, 3, {"x": runs}), "x", None)["tokens_per_second"] == 8
    assert row(Cell(10, 4, 3, {"x": runs}), "x", None)["whole_tokens_per_second"] == 4 * 3 / 2


def test_the_processor_is_named_with_its_extensions():
    assert processor()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert ("AVX2" in processor()) == (" avx2 " in flags)


def test_a_beginning_of_a_run():
    run = Run(2.0, [1.0, 3.0, 5.0], 11.0, kept_bytes=100, grown_bytes=10, tokens=[[1, 2, 3, 4], [5, 6, 7, 8]])
    assert run.read_bytes == 100 + 10 * 2  # steps read 1, 2 and 3 new tokens
    begun = run.beginning(3)
    assert (begun.steps, begun.whole, begun.tokens) == ([1.0, 3.0], 6.0, [[1, 2, 3], [5, 6, 7]])
    assert begun.read_bytes == 100 + 15
    assert run.beginning(4) is run


def test_ratios_are_medians_of_pairs():
    found = ratios(CELL, "10% kept", "full cache")
    assert found["first_token"] == pytest.approx((2 / 2 + 6 / 7) / 2)
    assert found["decode"] == 2
    assert found["whole"] == pytest.approx((6 / 4 + 10 / 9) / 2)
    assert found["same_tokens"] == 0.5


def test_amdahl():
    found = amdahl(CELL, "10% kept", "full cache")
    # decoding is 4 of 6 and 4 of 10 seconds and twice as fast: 1 / (1/3 + 1/3), 1 / (3/5 + 1/5)
    assert found["decode_share"] == pytest.approx((4 / 6 + 4 / 10) / 2)
    assert found["decode_speed_up"] == 2
    assert found["bound"] == pytest.approx((1.5 + 1.25) / 2)
    assert found["gain"] == pytest.approx((1.5 + 10 / 9) / 2)
    assert found["gain_of_bound"] == pytest.approx((1 + 10 / 9 / 1.25) / 2)


def test_tables():
    assert table(["a", "b"], [[1234, None], [0.12345, "x"]]) == (
        "| a | b |\n| --- | --- |\n| 1,234 | - |\n| 0.123 | x |"
    )
    own = [Own(label, "full cache", 140) for label in CELL.runs]
    worth = {"prompt_tokens": 1000, "arm": "10% kept", "tokens": 3, "perplexity": 1.5, "agreement": 2 / 3}
    found = {
        "environment": {"cores": 2},
        "rows": [row(CELL, label, 140) for label in CELL.runs],
        "against_full": [ratios(CELL, "10% kept", "full cache")],
        "amdahl": [amdahl(CELL, "10% kept", "full cache")],
        "against_peers": [],
        "peers": {"some": {"torch": "2"}},
        "failed": {"other": "no such wheel"},
        "fidelity": [worth],
    }
    text = markdown(found, own)
    assert "| 1,000 | 1 | 3 | 3,450 | 8.7% | 2,000 | 1,000 | 2 | 100.0% |" in text
    assert "given token by token" in text
    assert "| 1,000 | 10% kept | 3 | 1.5 | 66.7% |" in text
    assert "- some: torch 2\n- other did not run: no such wheel" in text


def test_weights_are_those_of_the_file(built_of, tmp_path):
    path = built_of("llama") / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    places, inline = {}, 0
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            places[entries["location"], entries.get("offset")] = int(entries["length"])
        else:
            inline += len(tensor.raw_data)
    assert weight_bytes(path) == inline + sum(places.values()) > 10_000
    small = numpy_helper.from_array(np.zeros((3, 5), np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [small])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "small.onnx")
    assert weight_bytes(tmp_path / "small.onnx") == 60
    data = (tmp_path / "small.onnx").read_bytes()
    for name, broken in (("cut", data[:-20]), ("text", b"not a graph at all")):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(EngineError, match="not an ONNX file"):
            weight_bytes(tmp_path / name)
    with pytest.raises(EngineError, match="No such file"):
        weight_bytes(tmp_path / "missing")


@pytest.mark.parametrize("count", [0, 1, 255, 1 << 18, (1 << 18) + 1, 1_000_003])
def test_the_reader_reads_every_word(count, rng):
    words = rng.integers(0, 2**32, count, np.uint32)
    for threads in (0, 1, 3):
        assert native().read_words(words, threads) == int(words.sum(dtype=np.uint64)) % 2**32


def test_the_reader_refuses():
    for wrong in (np.zeros(4, np.float32), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ValueError, match="read_words"):
            native().read_words(wrong, 1)
    with pytest.raises(ValueError, match="threads is -1"):
        native().read_words(np.zeros(4, np.uint32), -1)


def test_probes_tell_something():
    assert 1e7 < Bandwidth(1, 1 << 20)() < 1e13
    peak = Peak()
    peak.reset()
    before = peak.bytes()
    held = np.ones(8 << 20, np.uint64)  # 64 MiB
    if before:
        assert peak.bytes() - before > held.nbytes / 2


class Failing:
    label, own = "failing", False

    def run(self, asked, new_tokens):
        if new_tokens > 4:
            raise BenchError("it broke")
        return a_run(1.0, [1.0])


def test_an_arm_that_fails_is_told_and_left_out(engine_of):
    engine = engine_of("llama")
    settings = Settings((60, 80), (1, 2), (Budget(1.0), Budget(0.1)), (6, 3), 2)
    own = [EngineArm(engine, budget, "vl-cache") for budget in settings.budgets]
    measured = measure(settings, engine.manifest, [*own, Failing()], lambda: 1e9)
    assert measured.failed == {"failing": "it broke"}
    order = [(60, 1, 6), (60, 1, 3), (80, 1, 6), (80, 1, 3), (60, 2, 6), (60, 2, 3), (80, 2, 6), (80, 2, 3)]
    assert [(cell.length, cell.batch, cell.new_tokens) for cell in measured.cells] == order
    text = engine.manifest.text
    for cell in measured.cells[::2]:
        assert {label: len(runs) for label, runs in cell.runs.items()} == {"full cache": 2, "10% kept": 2}
        full, small = (runs[0] for runs in cell.runs.values())
        assert [len(tokens) for tokens in full.tokens] == [6] * cell.batch
        assert len(full.steps) == 5
        assert full.whole == pytest.approx(full.first + sum(full.steps))
        assert 0 < full.vision + full.prefill < full.first
        slot = 2 * text.layers * text.kv_heads * text.head_dim * 4
        # five steps read 1 to 5 new tokens and what the first token left: 3 of them on average
        assert full.read_bytes == slot * (cell.length + 3) * cell.batch
        assert small.read_bytes < full.read_bytes
        assert small.compress > 0
