"""The operators' harnesses: their oracles equal those of tests/oracles, and what a choice may hold."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from oracles import attend as attend_oracle
from oracles import evict as evict_oracle
from oracles import linear as linear_oracle
from oracles import score as score_oracle
from vlkv.errors import TuneError
from vlkv.ops import tuned
from vlkv.tune.harness import Harness, draw
from vlkv.tune.operators import attend, evict, linear, score
from vlkv.tune.operators.constants import OPERATORS, Choice, parse
from vlkv.tune.operators.library import BFLOAT16, SETS, VNNI, sources_folder
from vlkv.tune.operators.numbers import wide
from vlkv.tune.operators.shapes import Product, Shapes

ROOT = Path(__file__).parents[3]
PRODUCTS = {
    "float32": Product(64, 48, "float32"),
    "bfloat16": Product(64, 48, "bfloat16"),
    "float16": Product(64, 48, "float16"),
    "int8": Product(64, 48, "codes", 8, 64, "float32"),
    "int4": Product(64, 48, "codes", 4, 32, "float16", True),
    "int8 with minimums": Product(64, 48, "codes", 8, 32, "float16", minimums=True),
    "int4 with minimums": Product(64, 48, "codes", 4, 32, "float16", minimums=True),
    "int8 in fixed point": Product(64, 48, "codes", 8, 32, "float16", minimums=True, fixed=True),
    "int4 in fixed point": Product(64, 48, "codes", 4, 32, "float16", zeros=True, fixed=True),
}


def shapes(cache: str = "float32", weights: str = "float32") -> Shapes:
    return Shapes(4, 2, 32, cache, (64, 200), (PRODUCTS[weights],), "0" * 64)


def cases(harness: Harness, rng: np.random.Generator) -> list[dict]:
    """Inputs of some small sizes, without special values in most."""
    return [harness.case(sizes, rng) for sizes in draw(harness, rng)[::4]]


def near(got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        near = np.abs(got - wanted) <= bound
    same = near | (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    assert same.all()


@pytest.mark.parametrize("cache", ["float32", "bfloat16"])
def test_attends_oracle(rng: np.random.Generator, cache: str):
    harness = attend.harness(shapes(cache))
    for values in cases(harness, rng):
        found = harness.oracle(values)
        keys, means = (found[n].reshape(values[n].shape) for n in ("key_cache", "value_cache"))
        with np.errstate(all="ignore"):
            result, _ = attend_oracle.attend_stored(
                values["query"],
                wide(keys),
                wide(means),
                values["first"],
                values["last"],
                values["head_dim"] ** -0.5,
                (values["key"], values["value"]),
            )
        near(found["result"], result.reshape(-1), 1e-12 + 1e-9 * np.abs(result.reshape(-1)))


def test_scores_oracle(rng: np.random.Generator):
    harness = score.harness(shapes())
    for values in cases(harness, rng):
        if not np.isfinite(values["query"]).all():
            continue
        scale = values["head_dim"] ** -0.5
        arrays = (values["query"], values["key"], values["row_position"], scale, score.THRESHOLD)
        total, pairs, below = score_oracle.score(*arrays)
        found = harness.oracle(values)
        near(found["score"], total.reshape(-1), 1e-9)
        assert (found["pairs"] == pairs).all()
        assert (np.abs(found["below"] - below) <= score_oracle.near(*arrays, 1e-9)).all()


def test_evicts_oracle(rng: np.random.Generator):
    harness = evict.harness(shapes())
    for values in cases(harness, rng):
        names = ("key", "value", "score", "length", "keep", "sinks", "recent", "capacity")
        merge = "nearest_mean" if values["merge"] else "none"
        if not values["per_head"] and not np.isfinite(values["score"]).all():
            continue  # the order of float32 sums over heads with infinities is the kernel's
        key, value, position = evict_oracle.evict(*(values[n] for n in names), values["per_head"], merge)
        found = harness.oracle(values)
        if not values["per_head"] and (found["position_out"] != position.reshape(-1)).any():
            continue  # a tie in float32 that float64 tells apart
        assert (found["position_out"] == position.reshape(-1)).all()
        near(found["key_out"], key.reshape(-1), 1e-9)
        near(found["value_out"], value.reshape(-1), 1e-9)


@pytest.mark.parametrize("weights", list(PRODUCTS))
def test_linears_oracle(rng: np.random.Generator, weights: str):
    kind = PRODUCTS[weights]
    harness = linear.harness(shapes(weights=weights))
    for values in cases(harness, rng):
        stored = values["weight"].view(np.float16) if weights == "float16" else values["weight"]
        scales = values["scales"].view(np.float16) if kind.scales == "float16" else values["scales"]
        zeros = (
            values["minimums"].view(np.float16) if kind.minimums else values["zeros"] if kind.zeros else None
        )
        matrix = linear_oracle.widen(stored, scales, zeros, kind.bits, values["depth"])
        with np.errstate(all="ignore"):
            rows = values["input"]
            if values["norm_count"]:
                rows, _ = linear_oracle.normalized(rows, values["norm"], values["epsilon"])
            if values["gated_count"]:
                rows, _ = linear_oracle.gated(rows, values["gated"])
            result, bound = linear_oracle.linear(rows, matrix, values["bias"])
            if values["residual_count"]:
                result = result + values["residual"]
        near(harness.oracle(values)["result"], result.reshape(-1), np.nan_to_num(bound.reshape(-1)))


@pytest.mark.parametrize("name", list(OPERATORS))
def test_a_wrong_number_is_seen(rng: np.random.Generator, name: str):
    harness = {"attend": attend, "score": score, "evict": evict, "linear": linear}[name].harness(shapes())
    sizes = dict(harness.timed[0]) | {"slots": 40} if name != "linear" else dict(harness.timed[0])
    values = harness.case(sizes, rng)
    while name in ("attend", "score", "linear") and not all(
        np.isfinite(values[n]).all() for n in ("query", "input") if n in values
    ):
        values = harness.case(sizes, rng)
    dtypes = {a.name: np.dtype(a.dtype) for a in harness.arguments if a.use in ("out", "inout")}
    right = {n: np.asarray(a).astype(dtypes[n]) for n, a in harness.oracle(values).items()}
    assert harness.wrong(values, right) is None
    for changed in right:
        bad = {n: a.copy() for n, a in right.items()}
        at = int(rng.integers(bad[changed].size))
        bad[changed][at] = bad[changed][at] * 2 + 3
        assert harness.wrong(values, bad), changed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"VLKV_EVICT_AHEAD": 7}', "allowed are 2, 4, 8, 16, 32"),
        ('{"VLKV_EVICT_AHEAD": true}', "allowed are"),
        ('{"VLKV_EVICT_AHEAD": "16"}', "allowed are"),
        ('{"VLKV_ATTEND_KEYS": 64}', "evict has no"),
        ('{"flags": "-O2"}', "no list"),
        ('{"flags": ["-ffast-math"]}', "allowed are"),
        ('{"flags": ["-fplugin=/tmp/x.so"]}', "allowed are"),
        ('{"flags": ["-mtune=native", "-march=native"]}', "two of tune"),
        ('{"flags": ["-O2", "-O2"]}', "two of level"),
    ],
)
def test_only_listed_choices_are_read(text: str, says: str):
    with pytest.raises(TuneError, match=says):
        parse(OPERATORS["evict"], text)


def test_a_choice_is_read_as_it_was_written():
    text = '{"flags": ["-O2", "-funroll-loops"], "VLKV_EVICT_AHEAD": 16, "VLKV_EVICT_PIECE": 256}'
    choice = parse(OPERATORS["evict"], text)
    assert choice == Choice({"VLKV_EVICT_AHEAD": 16}, ("-O2", "-funroll-loops"))
    assert parse(OPERATORS["evict"], choice.text()) == choice
    assert choice.arguments == ["-DVLKV_EVICT_AHEAD=16", "-O2", "-funroll-loops"]


def test_constants_are_those_of_the_sources():
    header = (ROOT / "cpp" / "cpu" / "constants.h").read_text()
    defaults = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", header)}
    assert defaults == {n: v[0] for o in OPERATORS.values() for n, v in o.constants.items()}
    text = "".join(path.read_text() for path in (ROOT / "cpp" / "cpu").iterdir() if path.suffix != ".h")
    text += (ROOT / "cpp" / "cpu" / "kernels.h").read_text()
    assert all(name in text for name in defaults), "a constant that no kernel reads"


def test_flags_of_instruction_sets_are_those_of_the_build():
    text = " ".join((ROOT / "cpp" / "CMakeLists.txt").read_text().split())
    for flags in (SETS["avx512"], SETS["avx2"], BFLOAT16, VNNI):
        first = next(f for f in flags if f.startswith("-mavx"))
        assert first in text and all(f in text for f in flags)


def test_the_sources_are_installed():
    for path in ("tuned/table.cpp", "cpu/kernels.inl", "include/vlkv/score.h", "onnxruntime/operators.cpp"):
        assert (sources_folder() / path).is_file()
    assert len(tuned.sources_hash()) == 64
