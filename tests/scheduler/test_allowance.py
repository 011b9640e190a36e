"""Memory that is derived, and what a plan allows: checked against what the plan itself takes and refuses."""

from __future__ import annotations

import msgspec
import pytest

from vlkv.errors import MemoryLimitError, VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY, POLICIES
from vlkv.scheduler import memory as memories
from vlkv.scheduler.allowance import allowances, check_plan, lines, request, usual
from vlkv.scheduler.memory import default_memory, memory_at_hand
from vlkv.scheduler.plan import divide
from vlkv.storage.image_facts import text_alone

GIB = 1 << 30


@pytest.fixture
def llava_7b(engine_of):
    """A manifest with the sizes of LLaVA-1.5-7B."""
    manifest = engine_of("llama-old").manifest
    text = msgspec.structs.replace(
        manifest.text, layers=32, query_heads=32, kv_heads=32, head_dim=128, hidden=4096, max_positions=4096
    )
    image = msgspec.structs.replace(manifest.image, width=336, height=336, tile_features=576)
    return msgspec.structs.replace(manifest, text=text, image=image)


def fits(plan, one):
    try:
        plan.check(one)
    except VlkvError:
        return False
    return True


@pytest.mark.parametrize("hand", [3, 4, 8, 16, 64])
def test_defaults_take_llava_7b(llava_7b, monkeypatch, hand):
    monkeypatch.setattr(memories, "memory_at_hand", lambda: hand * GIB)
    text = llava_7b.text
    plan = divide(text, text.hidden, memory=default_memory(text))
    assert plan.memory == hand * GIB // 2
    assert usual(llava_7b) == 640
    check_plan(plan, llava_7b, POLICIES[DEFAULT_POLICY])
    found = {one.policy: one for one in allowances(plan, llava_7b)}
    assert all(one.at_once >= 1 and one.longest >= 640 for one in found.values())
    assert found["vl-cache"].at_once > found["full"].at_once or hand > 32
    assert "prompts to" in "\n".join(lines(plan, llava_7b))


def test_what_is_told_is_what_is_taken(llava_7b):
    text = llava_7b.text
    plan = divide(text, text.hidden, slots=8, memory=2 * GIB)
    for one in allowances(plan, llava_7b):
        policy = POLICIES[one.policy]
        assert fits(plan, request(policy, one.longest, 256))
        assert not fits(plan, request(policy, one.longest + 1, 256)) or one.longest == 4096 - 256
        asked = request(policy, 640, 256)
        lane, prefill = plan.lane_bytes(asked), plan.prefill_bytes(asked)
        assert one.at_once == min(8, (plan.memory - prefill) // lane)


def test_a_model_of_text_alone_is_told_without_pictures(llava_7b):
    manifest = msgspec.structs.replace(llava_7b, image=text_alone(llava_7b.text.vocab))
    plan = divide(manifest.text, manifest.text.hidden, 8, 8 << 30)
    assert usual(manifest) == 64
    assert any("at once of 64 tokens (64) and 256 new ones" in line for line in lines(plan, manifest))
    check_plan(plan, manifest, POLICIES[DEFAULT_POLICY], False)
    with pytest.raises(MemoryLimitError, match="no request of 64 tokens of text could ever run"):
        small = divide(manifest.text, manifest.text.hidden, 1, 16 << 20)
        check_plan(small, manifest, POLICIES["full"], False)


def test_impossible_plans_are_refused(llava_7b):
    text = llava_7b.text
    small = divide(text, text.hidden, memory=256 << 20)
    with pytest.raises(
        MemoryLimitError, match="no request of a picture and 64 tokens of text could ever run: "
    ):
        check_plan(small, llava_7b, POLICIES[DEFAULT_POLICY])
    with pytest.raises(MemoryLimitError, match="no request could ever run"):
        tiny = divide(text, text.hidden, memory=GIB, capacity=100)
        check_plan(tiny, llava_7b, POLICIES["full"], chosen=True)
    check_plan(divide(text, text.hidden, memory=GIB, capacity=300), llava_7b, POLICIES["full"], chosen=True)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n"}, 1024000),
        (
            {"meminfo": "MemAvailable: 1000 kB\n", "memory.max": "500000\n", "memory.current": "100000\n"},
            400000,
        ),
        ({"meminfo": "MemAvailable: 1000 kB\n", "memory.max": "max\n", "memory.current": "5"}, 1024000),
        ({"memory.max": "5\n", "memory.current": "9\n"}, 0),
        ({"memory/memory.limit_in_bytes": "700", "memory/memory.usage_in_bytes": "100"}, 600),
        ({"memory/memory.limit_in_bytes": str(1 << 62), "memory/memory.usage_in_bytes": "100"}, 0),
        (
            {"memory.max": "900", "memory.current": "850", "memory.stat": "anon 5\ninactive_file 300\n"},
            350,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "900",
                "memory/memory.usage_in_bytes": "850",
                "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 200\n",
            },
            250,
        ),
        (
            {
                "self/cgroup": "0::/a.slice/b.service\n",
                "a.slice/memory.max": "600",
                "a.slice/memory.current": "100",
                "a.slice/b.service/memory.max": "400",
                "a.slice/b.service/memory.current": "100",
            },
            300,
        ),
        (
            {
                "self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/docker/1\n",
                "memory/docker/1/memory.limit_in_bytes": "700",
                "memory/docker/1/memory.usage_in_bytes": "100",
            },
            600,
        ),
        ({}, 0),
    ],
)
def test_memory_at_hand(tmp_path, files, count):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_at_hand(tmp_path, tmp_path) == count


def test_shares_and_what_is_of_use(llava_7b, monkeypatch):
    text = llava_7b.text
    monkeypatch.setattr(memories, "memory_at_hand", lambda: 8 * GIB)
    assert default_memory(text, shares=2) == 2 * GIB
    assert default_memory(text, 1) == default_memory(text, 64) == 4 * GIB
    small = msgspec.structs.replace(text, layers=1, kv_heads=1, head_dim=8, hidden=8, max_positions=16)
    assert default_memory(small, 3) == 4 * 16 * (64 + 32)
    monkeypatch.setattr(memories, "memory_at_hand", lambda: 0)
    assert default_memory(text) == GIB


@pytest.mark.parametrize(
    "sizes, told",
    [
        ({"slots": 10**20}, "slots .* is over 4096"),
        ({"slots": 10**8}, "slots 100000000 is over 4096"),
        ({"slots": True}, "slots True is not a whole number"),
        ({"slots": "8"}, "slots '8' is not a whole number"),
        ({"memory": 1e9}, "memory 1000000000.0 is not a whole number"),
        ({"memory": float("nan")}, "memory nan is not a whole number"),
        ({"prompt_tokens": 0}, "prompt_tokens 0 is under 1"),
        ({"capacity": -1}, "capacity -1 is under 1"),
        ({"capacity": "64"}, "capacity '64' is not a whole number"),
        ({"capacity": [64, None, 0.5]}, "capacity 0.5 is not a whole number"),
    ],
)
def test_sizes_of_a_wrong_kind_are_refused_before_memory_is_touched(engine_of, sizes, told):
    with pytest.raises(MemoryLimitError, match=told):
        engine_of("llama-old").scheduler(**sizes)
