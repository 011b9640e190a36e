"""Lanes hold memory from the first token of a page until they are released, and a plan counts what is needed."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlkv.errors import MemoryLimitError
from vlkv.policies.builtin import POLICIES
from vlkv.scheduler.lanes import LaneCache, Reserved
from vlkv.scheduler.plan import PAGE, divide

TEXT = SimpleNamespace(layers=3, query_heads=4, kv_heads=2, head_dim=64, max_positions=4096, layer_windows=())
TOKEN = 2 * 64 * 2 * 4


def resident(array: Reserved) -> int:
    """Returns the bytes of an array that are backed by memory."""
    start, inside = array.array.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ")[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= start < high
        elif inside and head == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("no such addresses")


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="no pages are given back here")
def test_memory_follows_what_is_written():
    array = Reserved((4, 2, 1 << 20, 64))
    assert array.array.nbytes == 2 << 30 and resident(array) == 0
    array.array[1, :, :100] = 1.0
    taken = resident(array)
    assert 2 * 100 * 64 * 4 <= taken <= 2 * (100 * 64 * 4 + 2 * PAGE)
    array.array[2, 0, :10] = 2.0
    array.release(1)
    assert resident(array) <= 2 * PAGE
    assert (array.array[2, 0, :10] == 2.0).all()


@pytest.mark.parametrize("slots", [1, 3, 17, 1000])
def test_releasing_one_row_leaves_its_neighbours(slots):
    array = Reserved((3, 2, slots, 5))
    array.array[:] = np.arange(array.array.size).reshape(array.array.shape)
    kept = array.array[[0, 2]].copy()
    array.release(1)
    np.testing.assert_array_equal(array.array[[0, 2]], kept)


def test_an_empty_lane_and_a_move(rng):
    assert Reserved((0, 2, 3, 4)).array.shape == (0, 2, 3, 4)
    lanes = LaneCache(TEXT, 3, (40, 41, 42))
    cache = lanes.one(2)
    values = [rng.standard_normal((1, 2, 7, 64)).astype(np.float32) for _ in range(3)]
    for layer in range(3):
        cache.keys[layer][:, :, :7] = values[layer]
        cache.length[layer] = 7
    lanes.settle(cache, 2)
    lanes.move(2, 0)
    moved = lanes.first(1)
    for layer in range(3):
        np.testing.assert_array_equal(moved.keys[layer][:, :, :7], values[layer])
    assert moved.length.tolist() == [[7], [7], [7]]


def sequence(policy, budget, prompt, new):
    tokens = SimpleNamespace(token_ids=np.zeros(prompt, np.int64), last_image=prompt - 101)
    return SimpleNamespace(prompt=tokens, policy=POLICIES[policy], budget=budget, max_new_tokens=new)


def test_a_plan_counts_what_an_answer_needs():
    plan = divide(TEXT, 96, memory=64 << 20)
    small, whole = sequence("vl-cache", 0.1, 1000, 50), sequence("full", 1.0, 1000, 50)
    pages = 2 * 3 * 2 * PAGE
    assert plan.lane_bytes(small) == 3 * (100 + 50) * TOKEN + pages
    assert plan.lane_bytes(whole) == 3 * 1050 * TOKEN + pages
    assert plan.prefill_bytes(whole) == 0
    assert plan.prefill_bytes(small) == 1000 * (3 * (TOKEN + 2 * 4) + 96 * 4)
    # the queries of the 100 rows behind the picture stay until the prompt has run
    queries = 100 * TEXT.layers * TEXT.query_heads * TEXT.head_dim * 4
    assert plan.prefill_bytes(sequence("tgv-kv", 0.1, 1000, 50)) == plan.prefill_bytes(small) + queries
    assert plan.capacity == (4096,) * 3 and plan.prompt_tokens == 4096


def test_what_memory_never_holds_is_refused():
    plan = divide(TEXT, 96, memory=4 << 20)
    with pytest.raises(MemoryLimitError, match=r"need .* MiB, this server has 4 MiB"):
        plan.check(sequence("vl-cache", 1.0, 1000, 50))
    plan.check(sequence("vl-cache", 0.1, 900, 50))
    with pytest.raises(MemoryLimitError, match="does not hold one token"):
        divide(TEXT, 96, memory=50_000)
    with pytest.raises(MemoryLimitError, match="does not hold a prompt of 4096"):
        divide(TEXT, 96, memory=4 << 20, prompt_tokens=4096)
