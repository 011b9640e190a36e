"""What pictures of waiting requests take is counted and bounded; a small one does not wait for a large one."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vlkv import Question
from vlkv.errors import ImageError, MemoryLimitError, PromptError, ServerFullError
from vlkv.scheduler import pixels
from vlkv.scheduler.pixels import DECODING, Pixels

WAIT = 120


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-old")


def png(side=8):
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_the_budget():
    budget = Pixels(100)
    first = budget.hold(60)
    with pytest.raises(ServerFullError, match=r"pictures of waiting requests take .* the limit is"):
        budget.hold(41)
    second = budget.hold(40)
    assert budget.held == 100
    for _ in range(2):
        first.release()
    assert budget.held == 40
    second.release()
    with pytest.raises(MemoryLimitError, match="ask about fewer"):
        budget.hold(101)


def test_a_small_picture_is_decoded_beside_a_large_one():
    budget, entered, leave, order = Pixels(1), threading.Event(), threading.Event(), []

    def large(name):
        with budget.decoding(DECODING // pixels.BYTES_A_PIXEL - 100):
            order.append(name)
            entered.set()
            leave.wait(WAIT)

    threads = [threading.Thread(target=large, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    assert entered.wait(WAIT)
    with budget.decoding(64):
        order.append("small")
    time.sleep(0.02)
    assert len(order) == 2, "two large ones are not decoded at once"
    leave.set()
    for thread in threads:
        thread.join(WAIT)
    assert len(order) == 3
    with budget.decoding(10**12):
        pass


@pytest.mark.parametrize("how", ["finish", "cancel", "fail", "deadline", "close", "die"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_pixels_come_back_however_a_request_ends(engine, monkeypatch, how):
    held, vision = threading.Event(), engine.model.backend.vision

    def slow(*given):
        held.wait(WAIT)
        if how == "fail":
            raise RuntimeError("broken")
        if how == "die":
            raise SystemExit
        return vision(*given)

    monkeypatch.setattr(engine.model.backend, "vision", slow)
    asked = Question("what", [png()] * 3, budget=0.5, max_new_tokens=4)
    with engine.scheduler(slots=2) as scheduler:
        tickets = [scheduler.submit(asked, deadline=0.05 if how == "deadline" else None) for _ in range(3)]
        assert scheduler.stats().pixel_bytes > 0
        if how == "deadline":
            time.sleep(0.06)
        if how == "cancel":
            [ticket.cancel() for ticket in tickets]
        if how == "close":
            scheduler.close(drain=False, timeout=0.01)
        held.set()
        for ticket in tickets:
            try:
                ticket.wait(WAIT)
            except Exception:
                assert how in {"fail", "die"}
        assert scheduler.stats().pixel_bytes == 0


def test_pictures_of_many_that_wait_are_refused_and_nothing_is_decoded_in_vain(engine, monkeypatch):
    from vlkv.scheduler import scheduler as module

    decoded, read = [], module.read_visuals
    monkeypatch.setattr(module, "read_visuals", lambda *given: (decoded.append(1), read(*given))[1])
    held, extend = threading.Event(), engine.model.backend.extend
    monkeypatch.setattr(engine.model.backend, "extend", lambda *given: (held.wait(WAIT), extend(*given))[1])
    asked = Question("what", [png()] * 2, budget=0.5, max_new_tokens=2)
    side = engine.manifest.image.height
    size = 2 * 3 * side * side * 4
    with engine.scheduler(slots=1, pixel_memory=3 * size + 8) as scheduler:
        tickets = [scheduler.submit(Question("what", budget=0.5, max_new_tokens=2))]
        tickets += [scheduler.submit(asked) for _ in range(3)]
        assert scheduler.stats().pixel_bytes == 3 * size
        count = len(decoded)
        with pytest.raises(ServerFullError, match="pictures of waiting requests"):
            scheduler.submit(asked)
        with pytest.raises(MemoryLimitError, match="the pictures take"):
            scheduler.submit(Question("what", [png()] * 7, budget=0.5, max_new_tokens=2))
        with pytest.raises((PromptError, MemoryLimitError)):
            scheduler.submit(Question("what " * 5000, [png()], budget=0.5))
        assert len(decoded) == count
        before = scheduler.stats().pixel_bytes
        broken = png()[:-30]
        tickets.append(scheduler.submit(Question("what", budget=0.5, max_new_tokens=2)))
        held.set()
        tickets[1].wait(WAIT)
        with pytest.raises(ImageError):
            scheduler.submit(Question("what", [broken], budget=0.5))
        for ticket in tickets:
            ticket.wait(WAIT)
        assert before and scheduler.stats().pixel_bytes == 0
        assert scheduler.stats().refused == 1
