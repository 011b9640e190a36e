"""Who is in prefill, how much of it runs between two steps, and in which lane: short prompts pass, memory holds."""

from __future__ import annotations

import threading
from collections import deque
from itertools import pairwise
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest

from vlkv import Question
from vlkv.generation.chunks import GRAIN, chunk_bounds
from vlkv.policies.builtin import POLICIES
from vlkv.scheduler.lanes import LaneCache
from vlkv.scheduler.prefills import AGEING, BRIEF_SECONDS, BRIEF_STEPS, MOST, PASSES, SHARE, Prefills

WAIT = 120


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-old")


def pending(left, size=0, submitted=0.0, priority=0):
    one = SimpleNamespace(
        left=left, lane_bytes=size, prefill_bytes=size, passed=0, token_seconds=0.0, lane=-1, brief=False
    )
    one.held_bytes, one.step_bytes, one.priority = size, 0, priority
    one.ticket = SimpleNamespace(submitted=submitted)
    return one


def prefills(memory=1000, lanes=8, equal=False):
    return Prefills(SimpleNamespace(lanes=lanes), SimpleNamespace(room=memory), 256, equal)


def test_a_short_prompt_begins_beside_a_long_one_and_equal_ones_do_not():
    found, queue = prefills(), deque([pending(4000), pending(4000), pending(20), pending(15), pending(4000)])
    first, _, short, shorter, _ = queue
    assert found.choose(queue, []) is first
    assert found.choose(queue, []) is shorter
    assert found.choose(queue, []) is None  # 20 is not half of 15
    found.remove(shorter)
    assert found.choose(queue, []) is short
    assert len(queue) == 2
    parts = [found.next() for _ in range(6)]
    assert parts.count(short) == parts.count(first) == 3
    assert parts[0] is short


def test_the_memory_of_all_in_prefill_counts():
    found, queue = prefills(memory=100), deque([pending(100, 30), pending(10, 21), pending(9, 20)])
    big, mid, small = queue
    assert found.choose(queue, []) is big  # 60 of 100
    assert found.choose(queue, []) is small  # 21 + 21 do not fit beside it, 20 + 20 do
    assert found.choose(queue, []) is None
    assert list(queue) == [mid]


def test_a_higher_priority_begins_first_and_beside_lower_ones():
    now = monotonic()
    low, high, higher, long = (pending(100, priority=p, submitted=now) for p in (0, 2, 5, 3))
    long.left = 10**6
    found, queue = prefills(), deque([low, high, higher])
    assert found.choose(queue, []) is higher
    assert found.choose(queue, []) is None, "neither higher nor half as long"
    found.remove(higher)
    assert found.choose(queue, []) is high
    queue.append(long)
    assert found.choose(queue, []) is long, "higher, whatever its length"
    assert found.choose(queue, []) is None
    high.ticket.submitted = now - 1
    parts = [found.next() for _ in range(8)]
    assert (parts.count(long), parts.count(high)) == (6, 2), "every fourth part is the oldest's"


def test_a_low_priority_gains_a_level_in_time():
    now = monotonic()
    for waited, first in ((4.5 * AGEING, "new"), (5.5 * AGEING, "old")):
        asked = {
            "old": pending(100, priority=-5, submitted=now - waited),
            "new": pending(100, submitted=now),
        }
        assert prefills().choose(deque(asked.values()), []) is asked[first]
    # one that does not fit yet is passed by so many and no more, also by those of a higher priority
    found, answers = prefills(memory=100), [pending(1, 30)]
    big = pending(1000, 40, submitted=now - 100 * AGEING)
    queue = deque([big])
    for _ in range(PASSES):
        queue.append(small := pending(10, 5, submitted=now, priority=10))
        assert found.choose(queue, answers) is small
        found.remove(small)
    queue.append(pending(10, 5, submitted=now, priority=10))
    assert found.choose(queue, answers) is None


def grown(lane, held, step=1):
    one = pending(0, lane)
    one.held_bytes, one.step_bytes = held, step
    return one


def test_a_prompt_begins_in_memory_that_answers_need_later():
    answers = [grown(30, 10), grown(30, 10)]
    found = prefills(memory=100)
    assert found.choose(deque([pending(100, 40)]), answers) is found.running[0], "80 beside 20 that are held"
    assert not found.steps_wait(answers)
    answers[0].held_bytes = 11
    assert found.steps_wait(answers), "the step would exceed the memory"
    found.spent(found.running[0], 9.0, True)
    assert found.next() is found.running[0], "prefill runs on, whatever its debt"
    found.remove(found.running[0])
    assert not found.steps_wait(answers), "nothing waits for what is not in prefill"
    assert found.next() is None
    assert prefills(memory=99).choose(deque([pending(100, 40)]), answers) is None, "30 + 30 + 40 exceed 99"


def test_a_prompt_does_not_begin_if_steps_would_have_to_wait():
    answers = [grown(30, 10), grown(30, 10)]
    for memory, begins in ((139, False), (140, True)):
        found = prefills(memory=memory)
        one = pending(100, 40)
        one.token_seconds = 0.006
        found.spent(one, 0.1, True)
        found.stepped(0.02)
        # 0.6 s of prefill at 1.5 times the steps' time: 20 steps of 2 bytes
        found.choose(deque(), answers)
        assert (found.choose(deque([one]), answers) is one) == begins, memory
        found.idle()


def test_lanes_and_the_number_in_prefill_are_bounds():
    found, queue = prefills(lanes=3), deque([pending(100), pending(10)])
    assert found.choose(queue, [pending(1)] * 3) is None
    assert found.choose(queue, [pending(1)] * 2) is not None
    assert found.choose(queue, [pending(1)] * 2) is None
    found = prefills()
    begun = [found.choose(deque([pending(4**n)]), []) for n in range(9, 0, -1)]
    assert sum(one is not None for one in begun) == MOST


def test_one_that_does_not_fit_yet_is_passed_so_often_and_no_more():
    found, big = prefills(memory=100), pending(1000, 40)
    queue, answers = deque([big]), [pending(1, 30)]
    for _ in range(PASSES):
        queue.append(small := pending(10, 5))
        assert found.choose(queue, answers) is small
        found.remove(small)
    queue.append(pending(10, 5))
    assert found.choose(queue, answers) is None
    assert found.choose(queue, []) is big


def test_steps_have_their_share_of_the_time():
    found, queue = prefills(), deque([pending(10**6)])
    one = found.choose(queue, [])
    step = part = 0.0
    for _ in range(1000):
        if found.next() is not None:
            found.spent(one, 0.02, True)
            part += 0.02
        found.stepped(0.004)
        step += 0.004
    assert SHARE * 0.95 < part / step < SHARE * 1.05
    found.spent(one, 5.0, True)
    assert found.next() is None
    found.idle()
    assert found.next() is one


def test_the_more_wait_the_longer_prefill_takes():
    found, queue = prefills(), deque(pending(10**6) for _ in range(6))
    answers = [pending(1)] * 2
    found.choose(queue, answers)
    one = found.running[0]
    one.token_seconds = 1e-4
    assert found.tokens(one, 0.01) == 256, "six want 1.5 steps each"
    queue.clear()
    found.choose(queue, answers)
    assert found.tokens(one, 0.01) == 128
    few = prefills(lanes=3)
    few.choose(deque(pending(10**6) for _ in range(6)), answers)
    few.running[0].token_seconds = 1e-4
    few.choose(deque(pending(10**6) for _ in range(6)), answers)
    assert few.tokens(few.running[0], 0.01) == 128, "who has no lane to wait for does not count"


@pytest.mark.parametrize("parts", range(4))
def test_a_short_prompt_waits_for_the_part_that_runs_and_no_other(parts):
    """However many parts of the long one ran before; and a running answer pays for one prompt, not for two."""
    found, queue = prefills(), deque([pending(4000)])
    answers = [pending(1)]
    long = found.choose(queue, answers)
    long.token_seconds = 1e-4
    assert [found.next() for _ in range(parts)] == [long] * parts
    queue.append(short := pending(20))
    assert found.choose(queue, answers) is short
    assert found.next() is short
    found.choose(queue, answers)
    assert found.tokens(long, 0.01) == 128, "1.5 steps"
    queue.extend(pending(20) for _ in range(3))
    found.choose(queue, answers)
    assert found.tokens(long, 0.01) == 256, "many short ones are prefilled first"


def experienced(step=0.02, token=0.001):
    """Prefills that know how long a step and a token of a prompt take; the prompt owes the steps nothing."""
    found, queue = prefills(), deque([pending(100)])
    one = found.choose(queue, [])
    assert not one.brief, "nothing is known yet"
    one.token_seconds = token
    found.spent(one, 0.1, False)
    found.remove(one)
    found.stepped(step)
    return found


def test_a_brief_prompt_does_not_wait_for_its_share():
    found, answers = experienced(), [pending(1)]
    brief = found.choose(deque([pending(int(BRIEF_STEPS * 0.02 / 0.001))]), answers)
    assert brief.brief
    parts = steps = 0
    while parts < 100:
        while found.steps_wait(answers):
            assert found.next() is brief
            assert found.tokens(brief, 0.02) == GRAIN, (
                "a prompt that comes waits no longer than when nothing runs"
            )
            found.spent(brief, 0.05, True)
            parts += 1
        found.stepped(0.02)
        steps += 1
    assert steps * BRIEF_SECONDS <= parts * 0.05 <= steps * (BRIEF_SECONDS + 0.05)
    found.remove(brief)
    assert not found.steps_wait(answers)
    long = found.choose(deque([pending(4000)]), answers)
    assert found.next() is long, "and the next prompt does not pay for it"


def test_steps_make_up_for_a_brief_prompt_before_another_is_brief():
    found, answers, most = experienced(), [pending(1)], int(BRIEF_STEPS * 0.02 / 0.001)
    first = found.choose(deque([pending(most)]), answers)
    for _ in range(BRIEF_STEPS):
        found.spent(first, 0.02, True)
    found.remove(first)
    brief, steps = False, 0
    while not brief:
        second = found.choose(deque([pending(most // 2)]), answers)
        brief = second.brief
        found.remove(second)
        found.stepped(0.02)
        steps += 1
    assert steps - 1 == -(-BRIEF_STEPS // 2 // SHARE), "half of it, at the rate of one share"


@pytest.mark.parametrize(("waiting", "parts"), [(0, 1), (1, 2), (5, 3)])
def test_several_parts_run_before_a_step_while_many_wait(waiting, parts):
    found, answers = experienced(), [pending(1)]
    queue = deque(pending(4000) for _ in range(waiting + 1))
    found.choose(queue, answers)
    assert found.choose(queue, answers) is None
    found.stepped(0.02)  # pays for 0.03 s of prefill for each prompt
    for number in range(1, parts + 1):
        assert found.next() is found.running[0]
        found.spent(found.running[0], 0.05, True)
        assert found.steps_wait(answers) == (number < parts)


def test_a_long_prompt_is_not_brief_when_little_is_left():
    found, answers = experienced(), [pending(1)]
    long = found.choose(deque([pending(int(BRIEF_STEPS * 0.02 / 0.001) + 1)]), answers)
    long.left = 64
    found.spent(long, 0.05, True)
    assert not long.brief and not found.steps_wait(answers) and found.next() is None


def test_a_brief_prompt_of_low_priority_does_not_hold_up_the_steps():
    found, answers = experienced(), [pending(1)]
    brief = found.choose(deque([pending(100)]), answers)
    urgent = found.choose(deque([pending(4000, priority=1)]), answers)
    assert brief.brief and not urgent.brief
    found.spent(urgent, 0.05, True)
    assert found.next() is None and not found.steps_wait(answers), "or nothing would run at all"


def test_parts_follow_the_time_that_tokens_take():
    found, one = prefills(), pending(4000)
    assert found.tokens(one, 0.004) == GRAIN
    one.token_seconds = 1e-4
    assert found.tokens(one, 0.004) == GRAIN
    assert found.tokens(one, 0.01) == 128
    assert found.tokens(one, 0.0) == 256
    one.token_seconds = 1.0
    assert found.tokens(one, 0.0) == GRAIN
    assert prefills(equal=True).tokens(one, 0.004) == 256


@pytest.mark.parametrize("trial", range(30))
def test_chunks_end_at_multiples_from_the_first_observed_token(rng, trial):
    length, begin = int(rng.integers(1, 3000)), 0
    origin, chunk = int(rng.integers(0, length)), int(rng.integers(GRAIN, 2000))
    if trial % 2:
        begin = int(rng.integers(0, length))
    found = chunk_bounds(length, chunk, begin, origin)
    assert found[0][0] == begin and found[-1][1] == length
    assert all(end == after for (_, end), (after, _) in pairwise(found))
    for first, end in found:
        assert end - first >= min(GRAIN, length - begin) and end - first < chunk + 2 * GRAIN
        assert end == length or (end - origin) % GRAIN == 0 or first == 0 < end < 2 * GRAIN <= origin + GRAIN
    assert max(end - first for first, end in chunk_bounds(length, chunk, begin, origin, most=50)) <= 50
    assert chunk_bounds(length, 1, 0) == [(n, n + 1) for n in range(length)]


@pytest.mark.parametrize("policy", ["h2o", "vl-cache", "snapkv", "elastic"])
def test_the_size_of_chunks_changes_no_bit(engine, pictures, policy, rng):
    """A prompt of over 200 tokens in chunks of random sizes: logits, scores and kept tokens are the same."""
    from vlkv.generation.prefill import finish, prefill, prefilling
    from vlkv.generation.sequence import prepare

    words = " ".join(rng.choice(["what", "is", "the", "total", "date"], 230))
    asked = Question(f"the form <image> {words}", pictures[:1], policy=policy, budget=0.2, scores=True)
    whole, parts = (prepare(engine.model, asked) for _ in range(2))
    prefill(engine.model, whole)
    finish(prefilling(engine.model, parts, lambda: int(rng.integers(GRAIN, 120))))
    assert len(whole.prompt.token_ids) > 3 * GRAIN
    np.testing.assert_array_equal(whole.logits, parts.logits)
    for one, other in zip(whole.result.scores, parts.result.scores, strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.result.kept_tokens == parts.result.kept_tokens
    for ours, theirs in zip(whole.cache.keys, parts.cache.keys, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_lanes_exchange_their_tokens(rng):
    text = SimpleNamespace(layers=2, kv_heads=2, head_dim=8)
    lanes, values = LaneCache(text, 3, (30, 40)), {}
    for lane, count in ((0, 7), (2, 20)):
        cache = lanes.one(lane)
        for layer in range(2):
            values[lane, layer] = rng.standard_normal((2, count + layer, 8)).astype(np.float32)
            cache.keys[layer][0, :, : count + layer] = values[lane, layer]
            cache.values[layer][0, :, : count + layer] = -values[lane, layer]
    view = lanes.one(0)
    lanes.exchange(0, np.array([7, 8]), 2, np.array([20, 21]))
    lanes.point(view, 2)
    for lane, cache in ((2, lanes.one(0)), (0, view)):
        for layer in range(2):
            held = values[lane, layer]
            np.testing.assert_array_equal(cache.keys[layer][0, :, : held.shape[1]], held)
            np.testing.assert_array_equal(cache.values[layer][0, :, : held.shape[1]], -held)


def test_answers_are_the_same_when_many_are_in_prefill(engine, pictures, rng, monkeypatch):
    """Whole caches lie in lanes that others need: they move, at any moment of their prefill."""
    moved, most = [], []
    exchange, step = LaneCache.exchange, Prefills.next
    monkeypatch.setattr(LaneCache, "exchange", lambda *given: (moved.append(1), exchange(*given))[1])
    monkeypatch.setattr(Prefills, "next", lambda self: (most.append(len(self.running)), step(self))[1])
    questions = []
    for number in range(40):
        policy = "full" if number % 4 else str(rng.choice(list(POLICIES)))
        words = " ".join(["what"] * int(rng.choice([1, 3, 8, 20, 70])))
        budget = None if policy == "full" else 0.3
        questions.append(
            Question(words, policy=policy, budget=budget, max_new_tokens=int(rng.integers(1, 30)))
        )
    alone = [engine.generate_batch([question])[0].token_ids for question in questions]
    with engine.scheduler(slots=6, chunk=5) as scheduler:
        # who is where at which moment is a matter of time; lanes move in most rounds, not in all
        for _ in range(8):
            tickets = [scheduler.submit(question) for question in questions]
            found = [ticket.wait(WAIT).token_ids for ticket in tickets]
            assert scheduler.stats().slots_used == 0
            assert found == alone
            if moved and max(most) >= 2:
                return
    raise AssertionError("no lanes were exchanged")


def test_a_short_prompt_passes_a_long_one(engine, monkeypatch):
    held, reached, first = threading.Event(), threading.Event(), []
    extend = engine.model.backend.extend

    def slow(*given):
        if not first:
            first.append(1)
            reached.set()
            held.wait(WAIT)
        return extend(*given)

    monkeypatch.setattr(engine.model.backend, "extend", slow)
    with engine.scheduler(slots=3, chunk=8) as scheduler:
        long = scheduler.submit(Question(" ".join(["what"] * 100), budget=0.1, max_new_tokens=1))
        assert reached.wait(WAIT)
        short = scheduler.submit(Question("what", budget=0.5, max_new_tokens=1))
        held.set()
        short.wait(WAIT), long.wait(WAIT)
        assert short.first_token < long.first_token
