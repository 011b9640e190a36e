"""`Scheduler`: answers equal those of single requests, and lanes and memory are always given back."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from backend.host_device import host_backend
from models.steps import policies_of
from vlkv import Engine, Question
from vlkv.errors import ImageError, MemoryLimitError, PolicyError, PromptError, SamplingError, ServerFullError
from vlkv.model import Model

WORDS = ("what", "is", "the", "total", "name", "date", "city", "form", "yes", "no")
LONG = 60
WAIT = 120
"""Timeout in seconds that suffices on a busy machine."""


CPU = pytest.mark.parametrize("engine", ["cpu"], indirect=True)


@pytest.fixture(scope="module", params=["cpu", "device"])
def engine(request, engine_of, graphs_of, tmp_path_factory):
    """An engine on the CPU, and one whose caches are in the memory of a device, which is the host's."""
    if request.param == "cpu":
        return engine_of("llama-old")
    folder = tmp_path_factory.mktemp("engine") / "e"
    limits = {"capacity": 512, "batch": 6, "chunk": 64}
    found, facts = host_backend(graphs_of("llama-gqa-tied"), folder, "native", "in-place", **limits)
    return Engine(folder, Model.of(folder, facts, found))


def mixed(rng, pictures, count, engine):
    """Draws questions of every kind at random."""
    found, policies = [], policies_of(engine)
    for number in range(count):
        policy = "full" if rng.integers(3) == 0 else str(rng.choice(policies))
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


def same(result, other, lanes=False):
    """Returns whether everything except the times agrees; without the cache's bytes if it is a device's lane."""
    names = set(vars(result)) - {"seconds", "tokens_per_second", "positions", "scores", "image_positions"}
    names -= {"cache_bytes"} if lanes else set()
    return np.array_equal(result.image_positions, other.image_positions) and all(
        getattr(result, name) == getattr(other, name) for name in names
    )


def on_device(engine):
    return engine.manifest.device is not None


def idle(scheduler):
    stats = scheduler.stats()
    return (stats.slots_used, stats.waiting, stats.cache_bytes) == (0, 0, 0)


def endless(**fields):
    return Question(
        "what is the total", **{"budget": 0.1, "max_new_tokens": LONG, "temperature": 2.0, "seed": 5} | fields
    )


class Pace:
    """Holds the scheduler's decode steps until the test allows them, so no test depends on who is faster."""

    def __init__(self):
        self._free, self._allowed = False, threading.Semaphore(0)

    def __call__(self, count):
        """Allows a number of further steps."""
        self._allowed.release(count)

    def open(self):
        """Allows all steps."""
        self._free = True
        self._allowed.release()

    def take(self):
        if not self._free and not self._allowed.acquire(timeout=WAIT):
            raise TimeoutError("the test never allowed this step")


@pytest.fixture
def pace(engine, monkeypatch):
    return paced(engine, monkeypatch)


def paced(engine, monkeypatch):
    steps, pace = engine.model.backend.steps, Pace()

    def held(cache):
        made = steps(cache)
        step = made.step
        made.step = lambda *given: (pace.take(), step(*given))[1]
        return made

    monkeypatch.setattr(engine.model.backend, "steps", held)
    return pace


def begun(ticket):
    """Waits until the answer has its first token, which prefill computes without a decode step."""
    end = time.monotonic() + WAIT
    while ticket.first_token is None and not ticket.done and time.monotonic() < end:
        time.sleep(0.001)
    return ticket.first_token is not None


@pytest.mark.parametrize(
    ("operators", "weights", "chunk"),
    [("native", "float32", 7), ("functions", "float32", 256), ("native", "int8", 256)],
)
def test_answers_are_those_of_requests_alone(
    engine_of, pictures, rng, monkeypatch, operators, weights, chunk
):
    """Native operators give equal results in chunks of any size.

    Functions give shares that are rounded once per chunk.
    """
    engine = engine_of("llama-old", operators, weights)
    questions = mixed(rng, pictures, 40, engine)
    alone = [engine.generate_batch([question])[0] for question in questions]
    pace = paced(engine, monkeypatch)
    with engine.scheduler(slots=5, chunk=chunk) as scheduler:
        tickets = [scheduler.submit(question) for question in questions]
        pace.open()
        together = [ticket.wait(WAIT) for ticket in tickets]
        stats = scheduler.stats()
        assert idle(scheduler)
    for question, one, other in zip(questions, alone, together, strict=True):
        assert same(one, other), question
        for ours, theirs in zip(one.positions or [], other.positions or [], strict=True):
            assert (ours == theirs).all()
    assert stats.rows > 1.1 * stats.steps, "answers did not run side by side"
    assert stats.generated_tokens == sum(len(result.token_ids) for result in alone)
    assert stats.prompt_tokens == sum(result.prompt_tokens for result in alone)
    assert sum(stats.finished.values()) == stats.submitted == len(questions)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_logits_do_not_depend_on_the_rest_of_the_batch(engine_of, weights, rng):
    """On this processor a row's bits are the same in every batch size, so tokens cannot differ."""
    from vlkv.backend.cache import Cache

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
        steps = engine.model.backend.steps(Cache(*part, np.ascontiguousarray(length[:, :batch])))
        found[batch] = steps.step(embeds[:batch], positions[:batch], np.ones(batch, bool)).copy()
    for batch, logits in found.items():
        np.testing.assert_array_equal(logits, found[most][:batch])


def test_running_answers_go_on_while_a_prompt_is_read(engine, pictures, pace, monkeypatch):
    monkeypatch.setattr("vlkv.scheduler.prefills.BRIEF_STEPS", 0)  # or it is read before the next step
    marks = []
    with engine.scheduler(slots=2, chunk=4) as scheduler:
        running = scheduler.submit(endless())
        running.listen(lambda _, piece: marks.append(("running", piece)))
        reading = scheduler.submit(Question(" ".join(WORDS), pictures, max_new_tokens=1))
        reading.listen(lambda _, piece: marks.append(("reading", piece)))
        pace.open()
        reading.wait(WAIT)
        assert reading.started is not None
        stats = scheduler.stats()
        running.wait(WAIT)
    before = [name for name, _ in marks[: marks.index(("reading", None))]]
    chunks = -(-reading.result.prompt_tokens // 4)
    assert chunks > 5
    assert stats.steps >= chunks
    assert before.count("running") >= chunks // 2


def test_pieces_are_the_text_in_threads_and_in_asyncio(engine, pictures):
    question = Question("what is the total", pictures[:1], budget=0.1, max_new_tokens=20)
    whole = engine.generate_batch([question])[0].text
    with engine.scheduler(slots=3) as scheduler:
        late = scheduler.submit(question)
        late.wait(WAIT)
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
            thread.join(WAIT)
        assert found == [whole] * 5


def test_cancelling_frees_the_slot_at_once(engine, pace):
    with engine.scheduler(slots=1) as scheduler:
        first, second = scheduler.submit(endless()), scheduler.submit(endless())
        assert begun(first)
        second.cancel()
        pace(1)
        assert second.wait(WAIT).finish_reason == "cancelled"
        assert second.started is None
        first.cancel()
        pace(1)
        assert first.wait(WAIT).finish_reason == "cancelled"
        assert len(first.result.token_ids) in {2, 3}
        assert idle(scheduler)
        with scheduler.submit(endless()) as third:
            assert begun(third)
        pace(1)
        assert third.wait(WAIT).finish_reason == "cancelled"


def test_a_deadline_ends_an_answer_with_what_it_has(engine, pace):
    with engine.scheduler(slots=1) as scheduler:
        for deadline in (0.2, 2, 20):  # a busy machine may need longer than the first to prefill the prompt
            running = scheduler.submit(endless(), deadline=deadline)
            if begun(running):
                break
        waiting = scheduler.submit(endless(), deadline=0.01)
        time.sleep(0.02)
        pace(1)
        assert waiting.wait(WAIT).finish_reason == "deadline"
        assert waiting.result.text == ""
        time.sleep(max(0.0, running.submitted + deadline - time.monotonic()))
        pace(1)
        assert running.wait(WAIT).finish_reason == "deadline"
        assert len(running.result.token_ids) in {2, 3}
        assert idle(scheduler)
        pace.open()
        late = scheduler.submit(Question("what", budget=0.1, max_new_tokens=3), deadline=10 * WAIT)
        assert late.wait(WAIT).finish_reason in {"stop", "length"}
        for wrong in (0, -1, float("nan")):
            with pytest.raises(SamplingError, match="deadline"):
                scheduler.submit(endless(), deadline=wrong)


def test_a_full_queue_is_told(engine, pace):
    with engine.scheduler(slots=1, queue=2) as scheduler:
        first = scheduler.submit(endless())
        assert begun(first)
        held = [scheduler.submit(endless()) for _ in range(2)]
        with pytest.raises(
            ServerFullError, match="server is full: 2 requests wait for 1 lanes, the limit is 2"
        ):
            scheduler.submit(endless())
        assert scheduler.stats().refused == 1
        for ticket in (first, *held):
            ticket.cancel()
        pace.open()
        assert {ticket.wait(WAIT).finish_reason for ticket in (first, *held)} == {"cancelled"}
        assert scheduler.submit(Question("what", budget=0.1, max_new_tokens=2)).wait(WAIT).text is not None


@CPU
def test_what_can_never_run_is_refused(engine, pictures, tmp_path):
    text = engine.manifest.text
    token = text.kv_heads * text.head_dim * 8 * text.layers
    with engine.scheduler(slots=2, capacity=20, prompt_tokens=24) as scheduler:
        assert scheduler.plan.token_bytes * sum(scheduler.plan.capacity) == 20 * token
        words = " ".join(["what"] * 10)
        prompt = len(engine.prompt(Question(words)).token_ids)
        with pytest.raises(
            MemoryLimitError, match=f"'full' needs cache slots for {prompt} prompt and 15 new tokens.*20"
        ):
            scheduler.submit(Question(words, policy="full", max_new_tokens=15))
        with pytest.raises(MemoryLimitError, match=r"budget 1 of .* a lane of this server holds 20 tokens"):
            scheduler.submit(Question(words, budget=1.0, max_new_tokens=15))
        with pytest.raises(PromptError, match="this server takes 24 at most"):
            scheduler.submit(Question(" ".join(["what"] * 40), budget=0.1))
        with pytest.raises(PolicyError):
            scheduler.submit(Question("what", budget=2))
        with pytest.raises(ImageError):
            scheduler.submit(Question("what", [tmp_path / "none.png"], budget=0.1, max_new_tokens=4))
        assert scheduler.stats().submitted == 0
        fits = Question(words, policy="full", max_new_tokens=20 - prompt)
        assert same(scheduler.submit(fits).wait(WAIT), engine.generate_batch([fits])[0])
    for settings in (
        {"memory": 1000},
        {"slots": 0},
        {"capacity": 10**9},
        {"capacity": [3]},
        {"prompt_tokens": 0},
    ):
        with pytest.raises(MemoryLimitError):
            engine.scheduler(**settings)


@CPU
def test_a_slot_cuts_layers_to_its_capacity(engine, pictures):
    question = Question("what is the total", pictures, budget=0.3, max_new_tokens=4)
    alone = engine.generate_batch([question])[0]
    prompt, kept = alone.prompt_tokens, alone.kept_tokens
    assert max(kept) > min(kept)
    most = -(-sum(kept) // len(kept))
    with engine.scheduler(slots=2, capacity=most + 4) as scheduler:
        result = scheduler.submit(question).wait(WAIT)
    assert max(result.kept_tokens) <= most
    assert sum(result.kept_tokens) == sum(kept) == round(0.3 * len(kept) * prompt)


def test_one_request_that_fails_harms_no_other(engine, monkeypatch):
    question = Question("what is the total", budget=0.1, max_new_tokens=30)
    alone, lanes = engine.generate_batch([question])[0], on_device(engine)
    extend, count = engine.model.backend.extend, []

    def failing(*given):
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("no more memory")
        return extend(*given)

    monkeypatch.setattr(engine.model.backend, "extend", failing)
    with engine.scheduler(slots=2) as scheduler:
        tickets = [scheduler.submit(question) for _ in range(3)]
        with pytest.raises(RuntimeError, match="no more memory"):
            tickets[1].wait(WAIT)
        assert [same(tickets[n].wait(WAIT), alone, lanes) for n in (0, 2)] == [True, True]
        assert scheduler.stats().failed == 1
        assert idle(scheduler)


@pytest.mark.parametrize("late", [False, True])
def test_a_listener_that_goes_away_cancels(engine, pace, late):
    def gone(ticket, piece):
        if piece is not None:
            raise ConnectionError

    with engine.scheduler(slots=2) as scheduler:
        ticket = scheduler.submit(endless())
        if late:
            assert begun(ticket)
        ticket.listen(gone)
        pace.open()
        assert ticket.wait(WAIT).finish_reason == "cancelled"


def test_closing_drains_or_aborts(engine, pace):
    scheduler = engine.scheduler(slots=1)
    tickets = [scheduler.submit(Question("what", budget=0.1, max_new_tokens=5)) for _ in range(3)]
    assert not scheduler.close(timeout=0.01)
    pace.open()
    assert scheduler.close(timeout=WAIT)
    assert all(ticket.result.finish_reason in {"stop", "length"} for ticket in tickets)
    with pytest.raises(ServerFullError, match="shutting down"):
        scheduler.submit(Question("what"))


def test_closing_without_draining_cancels_all(engine, pace):
    scheduler = engine.scheduler(slots=1)
    tickets = [scheduler.submit(endless()) for _ in range(3)]
    assert begun(tickets[0])
    assert not scheduler.close(drain=False, timeout=0.01)
    pace.open()
    assert scheduler.close(drain=False, timeout=WAIT)
    assert {ticket.wait(1).finish_reason for ticket in tickets} == {"cancelled"}


def test_random_cancels_and_deadlines_leave_nothing_behind(engine, pictures, rng):
    questions, lanes = mixed(rng, pictures, 80, engine), on_device(engine)
    alone = {}
    # a device's engine rounds the shares of pairs once a chunk
    chunk = 1024 if lanes else 5
    with engine.scheduler(slots=4, chunk=chunk, queue=100, capacity=300, prompt_tokens=200) as scheduler:
        limit = scheduler.plan.memory
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
            result = ticket.wait(WAIT)
            if result.finish_reason in {"stop", "length"}:
                alone[question.prompt] = (question, result)
        stats = scheduler.stats()
        assert idle(scheduler)
        assert sum(stats.finished.values()) == len(questions)
    assert alone
    for question, result in list(alone.values())[:10]:
        assert same(result, engine.generate_batch([question])[0], lanes)
