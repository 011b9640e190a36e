"""An error in the scheduler's own thread: one request's is that request's, the thread's ends all with a message."""

from __future__ import annotations

import pytest

from vlkv import Question
from vlkv.errors import ServerStoppedError
from vlkv.scheduler.batch import Batch
from vlkv.scheduler.lanes import LaneCache
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.worker import Worker

WAIT = 120
ASKED = Question("what is the total", budget=0.1, max_new_tokens=30, stop=("never",))


class Death(BaseException):
    """What no handler of requests' errors catches."""


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-old")


def failing(real, error, at):
    """The function, which raises at its call of that number."""
    calls = []

    def call(*given, **named):
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(*given, **named)

    return call


@pytest.mark.parametrize(
    ("place", "at"),
    [((LaneCache, "one"), 2), ((Pending, "begin"), 2), ((Pending, "advance"), 3), ((Batch, "add"), 2)],
)
def test_an_error_of_one_request_is_its_own(engine, monkeypatch, place, at):
    whole = engine.generate_batch([ASKED])[0].text
    monkeypatch.setattr(*place, failing(getattr(*place), RuntimeError("broken here"), at))
    with engine.scheduler(slots=2) as scheduler:
        tickets = [scheduler.submit(ASKED) for _ in range(3)]
        with pytest.raises(RuntimeError, match="broken here"):
            tickets[1].wait(WAIT)
        assert [tickets[n].wait(WAIT).text for n in (0, 2)] == [whole] * 2
        assert scheduler.alive
        stats = scheduler.stats()
        assert (stats.alive, stats.failed, stats.slots_used, stats.cache_bytes) == (1, 1, 0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [Death("a bug"), MemoryError()])
@pytest.mark.parametrize(
    "place", [(Worker, "_sweep"), (Worker, "_count"), (Worker, "_begin"), (Worker, "_advance")]
)
def test_a_dead_thread_is_told_to_all(engine, monkeypatch, place, error):
    scheduler = engine.scheduler(slots=2)
    monkeypatch.setattr(*place, failing(getattr(*place), error, 4))
    tickets = []
    for _ in range(6):
        try:
            tickets.append(scheduler.submit(ASKED))
        except ServerStoppedError:
            break
    lost = []
    for ticket in tickets:
        try:
            ticket.wait(WAIT)
        except ServerStoppedError as told:
            lost.append(str(told))
    assert lost and all("the scheduler has stopped by an error" in text for text in lost)
    assert scheduler.close(timeout=WAIT)
    assert not scheduler.alive
    stats = scheduler.stats()
    assert (stats.alive, stats.slots_used, stats.waiting, stats.cache_bytes) == (0, 0, 0, 0)
    assert stats.failed == len(lost)
    with pytest.raises(ServerStoppedError, match="stopped by an error"):
        scheduler.submit(ASKED)


def test_leaving_does_not_wait_for_a_thread_that_hangs(engine, monkeypatch):
    import threading

    from vlkv.scheduler import scheduler as module

    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    held, reached = threading.Event(), threading.Event()
    extend = engine.model.backend.extend
    monkeypatch.setattr(
        engine.model.backend, "extend", lambda *given: (reached.set(), held.wait(WAIT), extend(*given))[2]
    )
    with engine.scheduler(slots=1) as scheduler:
        ticket = scheduler.submit(ASKED)
        assert reached.wait(WAIT)
    held.set()
    assert ticket.wait(WAIT).finish_reason == "cancelled"
