"""`Scheduler`: answers are those that requests get alone; slots and memory come back, whatever happens."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from vlkv import POLICIES, Question
from vlkv.errors import ImageError, MemoryLimitError, PolicyError, PromptError, SamplingError, ServerFullError

WORDS = ("what", "is", "the", "total", "name", "date", "city", "form", "yes", "no")
LONG = 60


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-old")


def mixed(rng, pictures, count):
    """Questions of every kind, drawn at random."""
    found = []
    for number in range(count):
        policy = "full" if rng.integers(3) == 0 else str(rng.choice(list(POLICIES)))
        sampled = bool(rng.integers(4) == 0)
        found.append(
            Question(
                " ".join(rng.choice(WORDS, int(rng.integers(1, 12)))),
                [*pictures[: int(rng.integers(3))]],
                policy=policy,
                budget=None if policy == "full" else float(rng.choice([0.05, 0.1, 0.5, 1.0])),
                max_new_tokens=int(rng.integers(1, 24)),
                temperature=1.0 if sampled else 0.0,
                top_k=int(rng.integers(0, 20)) if sampled else 0,
                top_p=float(rng.uniform(0.5, 1.0)) if sampled else 1.0,
                seed=number,
                stop=("yes",) if rng.integers(5) == 0 else (),
            )
        )
    return found


def same(result, other):
    """Whether all but times agree."""
    names = set(vars(result)) - {"seconds", "tokens_per_second", "positions", "scores"}
    return all(getattr(result, name) == getattr(other, name) for name in names)


def idle(scheduler):
    stats = scheduler.stats()
    return (stats.slots_used, stats.waiting, stats.cache_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("operators", "weights", "chunk"),
    [("native", "float32", 7), ("functions", "float32", 256), ("native", "int8", 256)],
)
def test_answers_are_those_of_requests_alone(engine_of, pictures, rng, operators, weights, chunk):
    """Native operators count and add alike in chunks of any size; functions give shares, rounded once a chunk."""
    engine = engine_of("llama-old", operators, weights)
    questions = mixed(rng, pictures, 40)
    alone = [engine.generate_batch([question])[0] for question in questions]
    with engine.scheduler(slots=5, chunk=chunk) as scheduler:
        tickets = [scheduler.submit(question) for question in questions]
        together = [ticket.wait(60) for ticket in tickets]
        stats = scheduler.stats()
        assert idle(scheduler)
    for question, one, other in zip(questions, alone, together, strict=True):
        assert same(one, other), question
        for ours, theirs in zip(one.positions or [], other.positions or [], strict=True):
            assert (ours == theirs).all()
    assert stats.rows > 1.5 * stats.steps, "answers did not run side by side"
    assert stats.generated_tokens == sum(len(result.token_ids) for result in alone)
    assert stats.prompt_tokens == sum(result.prompt_tokens for result in alone)
    assert sum(stats.finished.values()) == stats.submitted == len(questions)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_logits_do_not_depend_on_the_rest_of_the_batch(engine_of, weights, rng):
    """Why tokens can't differ: a row's bits are the same in every batch size, on this processor at least."""
    from vlkv.cache import Cache

    engine = engine_of("llama-old", "native", weights)
    text, most = engine.manifest.text, 9
    shape = (most, text.kv_heads, 40, text.head_dim)
    keys, values = ([rng.standard_normal(shape, np.float32) for _ in range(text.layers)] for _ in range(2))
    length = rng.integers(5, 30, (text.layers, most))
    embeds = rng.standard_normal((most, text.hidden), np.float32)
    positions = rng.integers(30, 60, most)
    found = {}
    for batch in range(1, most + 1):
        part = [[array[:batch].copy() for array in arrays] for arrays in (keys, values)]
        steps = engine._backend.steps(Cache(*part, np.ascontiguousarray(length[:, :batch])))
        found[batch] = steps.step(embeds[:batch], positions[:batch], np.ones(batch, bool)).copy()
    for batch, logits in found.items():
        np.testing.assert_array_equal(logits, found[most][:batch])


def test_running_answers_go_on_while_a_prompt_is_read(engine, pictures):
    marks = []
    with engine.scheduler(slots=2, chunk=4) as scheduler:
        running = scheduler.submit(Question("what is", max_new_tokens=LONG, stop=("never",)))
        running.listen(lambda _, piece: marks.append(("running", piece)))
        reading = scheduler.submit(Question(" ".join(WORDS), pictures, max_new_tokens=1))
        reading.listen(lambda _, piece: marks.append(("reading", piece)))
        reading.wait(30)
        assert reading.started is not None
        stats = scheduler.stats()
        running.wait(30)
    before = [name for name, _ in marks[: marks.index(("reading", None))]]
    chunks = -(-reading.result.prompt_tokens // 4)
    assert chunks > 5
    assert stats.steps >= chunks
    assert before.count("running") >= chunks // 2


def test_pieces_are_the_text_in_threads_and_in_asyncio(engine, pictures):
    question = Question("what is the total", pictures[:1], max_new_tokens=20)
    whole = engine.generate_batch([question])[0].text
    with engine.scheduler(slots=3) as scheduler:
        late = scheduler.submit(question)
        late.wait(30)
        assert "".join(late) == whole

        async def all_of() -> list[str]:
            async def one():
                return "".join([piece async for piece in scheduler.submit(question)])

            return await asyncio.gather(*(one() for _ in range(5)))

        assert asyncio.run(all_of()) == [whole] * 5
        found = []
        threads = [
            threading.Thread(target=lambda: found.append("".join(scheduler.submit(question))))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [whole] * 5


def endless(**fields):
    return Question("what is the total", max_new_tokens=LONG, temperature=2.0, seed=5, **fields)


def slow(engine, monkeypatch, seconds=0.02):
    """Makes each step take that long, so that there is time to interfere."""
    steps = engine._backend.steps

    def slower(cache):
        made = steps(cache)
        step = made.step
        made.step = lambda *given: (time.sleep(seconds), step(*given))[1]
        return made

    monkeypatch.setattr(engine._backend, "steps", slower)


def test_cancelling_frees_the_slot_at_once(engine, monkeypatch):
    slow(engine, monkeypatch)
    with engine.scheduler(slots=1) as scheduler:
        first, second = scheduler.submit(endless()), scheduler.submit(endless())
        next(iter(first))
        second.cancel()
        assert second.wait(5).finish_reason == "cancelled"
        assert second.started is None
        first.cancel()
        assert first.wait(5).finish_reason == "cancelled"
        assert 0 < len(first.result.token_ids) < LONG
        assert idle(scheduler)
        with scheduler.submit(endless()) as third:
            next(iter(third))
        assert third.wait(5).finish_reason == "cancelled"


def test_a_deadline_ends_an_answer_with_what_it_has(engine, monkeypatch):
    slow(engine, monkeypatch, 0.05)
    with engine.scheduler(slots=1) as scheduler:
        running, waiting = (
            scheduler.submit(endless(), deadline=0.4),
            scheduler.submit(endless(), deadline=0.2),
        )
        assert waiting.wait(5).finish_reason == "deadline"
        assert waiting.result.text == ""
        assert running.wait(5).finish_reason == "deadline"
        assert 0 < len(running.result.token_ids) < LONG
        assert idle(scheduler)
        assert scheduler.submit(Question("what", max_new_tokens=3), deadline=60).wait(10).finish_reason in {
            "stop",
            "length",
        }
        for wrong in (0, -1, float("nan")):
            with pytest.raises(SamplingError, match="deadline"):
                scheduler.submit(endless(), deadline=wrong)


def test_a_full_queue_is_told(engine, monkeypatch):
    slow(engine, monkeypatch)
    with engine.scheduler(slots=1, queue=2) as scheduler:
        first = scheduler.submit(endless())
        next(iter(first))
        held = [scheduler.submit(endless()) for _ in range(2)]
        with pytest.raises(
            ServerFullError, match="server is full: 2 requests wait for 1 slots, the limit is 2"
        ):
            scheduler.submit(endless())
        assert scheduler.stats().refused == 1
        for ticket in (first, *held):
            ticket.cancel()
            ticket.wait(10)
        assert scheduler.submit(Question("what", max_new_tokens=2)).wait(10).text is not None


def test_what_can_never_run_is_refused(engine, pictures, tmp_path):
    text = engine.manifest.text
    token = text.kv_heads * text.head_dim * 8 * text.layers
    with engine.scheduler(slots=2, capacity=20, prompt_tokens=24) as scheduler:
        assert scheduler.plan.slot_bytes == 20 * token
        words = " ".join(["what"] * 10)
        prompt = len(engine.prompt(Question(words)).token_ids)
        with pytest.raises(
            MemoryLimitError, match=f"'full' needs room for {prompt} prompt and 15 new tokens.*20"
        ):
            scheduler.submit(Question(words, policy="full", max_new_tokens=15))
        with pytest.raises(MemoryLimitError, match=r"budget 1 of .* a slot of this server holds 20 tokens"):
            scheduler.submit(Question(words, budget=1.0, max_new_tokens=15))
        with pytest.raises(PromptError, match="this server takes 24 at most"):
            scheduler.submit(Question(" ".join(["what"] * 40)))
        with pytest.raises(PolicyError):
            scheduler.submit(Question("what", budget=2))
        with pytest.raises(ImageError):
            scheduler.submit(Question("what", [tmp_path / "none.png"]))
        assert scheduler.stats().submitted == 0
        fits = Question(words, policy="full", max_new_tokens=20 - prompt)
        assert same(scheduler.submit(fits).wait(10), engine.generate_batch([fits])[0])
    for settings in (
        {"memory": 1000},
        {"slots": 0},
        {"capacity": 10**9},
        {"capacity": [3]},
        {"prompt_tokens": 0},
    ):
        with pytest.raises(MemoryLimitError):
            engine.scheduler(**settings)


def test_a_slot_cuts_layers_to_its_capacity(engine, pictures):
    question = Question("what is the total", pictures, budget=0.3, max_new_tokens=4)
    alone = engine.generate_batch([question])[0]
    prompt, kept = alone.prompt_tokens, alone.kept_tokens
    assert max(kept) > min(kept)
    most = -(-sum(kept) // len(kept))
    with engine.scheduler(slots=2, capacity=most + 4) as scheduler:
        result = scheduler.submit(question).wait(10)
    assert max(result.kept_tokens) <= most
    assert sum(result.kept_tokens) == sum(kept) == round(0.3 * len(kept) * prompt)


def test_one_request_that_fails_harms_no_other(engine, monkeypatch):
    question = Question("what is the total", max_new_tokens=30)
    alone = engine.generate_batch([question])[0]
    extend, count = engine._backend.extend, []

    def failing(*given):
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("no more memory")
        return extend(*given)

    monkeypatch.setattr(engine._backend, "extend", failing)
    with engine.scheduler(slots=2) as scheduler:
        tickets = [scheduler.submit(question) for _ in range(3)]
        with pytest.raises(RuntimeError, match="no more memory"):
            tickets[1].wait(10)
        assert [same(tickets[n].wait(10), alone) for n in (0, 2)] == [True, True]
        assert scheduler.stats().failed == 1
        assert idle(scheduler)


def test_a_listener_that_goes_away_cancels(engine, monkeypatch):
    slow(engine, monkeypatch)

    def gone(ticket, piece):
        if piece is not None:
            raise ConnectionError

    with engine.scheduler(slots=1) as scheduler:
        ticket = scheduler.submit(endless())
        ticket.listen(gone)
        assert ticket.wait(10).finish_reason == "cancelled"


def test_closing_drains_or_aborts(engine, monkeypatch):
    slow(engine, monkeypatch, 0.005)
    scheduler = engine.scheduler(slots=1)
    tickets = [scheduler.submit(Question("what", max_new_tokens=5)) for _ in range(3)]
    assert scheduler.close(timeout=20)
    assert all(ticket.result.finish_reason in {"stop", "length"} for ticket in tickets)
    with pytest.raises(ServerFullError, match="shutting down"):
        scheduler.submit(Question("what"))
    scheduler = engine.scheduler(slots=1)
    tickets = [scheduler.submit(endless()) for _ in range(3)]
    assert scheduler.close(drain=False, timeout=20)
    assert {ticket.wait(1).finish_reason for ticket in tickets} == {"cancelled"}


def test_random_cancels_and_deadlines_leave_nothing_behind(engine, pictures, rng):
    questions = mixed(rng, pictures, 80)
    alone = {}
    with engine.scheduler(slots=4, chunk=5, queue=100, capacity=300, prompt_tokens=200) as scheduler:
        limit = scheduler.plan.bytes
        tickets = []
        for number, question in enumerate(questions):
            deadline = float(rng.uniform(0.001, 0.3)) if rng.integers(3) == 0 else None
            tickets.append(scheduler.submit(question, deadline=deadline))
            if rng.integers(3) == 0:
                tickets[int(rng.integers(number + 1))].cancel()
            assert scheduler.stats().cache_bytes <= limit
            if rng.integers(4) == 0:
                time.sleep(float(rng.uniform(0, 0.02)))
        for ticket, question in zip(tickets, questions, strict=True):
            result = ticket.wait(60)
            if result.finish_reason in {"stop", "length"}:
                alone[question.prompt] = (question, result)
        stats = scheduler.stats()
        assert idle(scheduler)
        assert sum(stats.finished.values()) == len(questions)
    assert alone
    for question, result in list(alone.values())[:10]:
        assert same(result, engine.generate_batch([question])[0])
