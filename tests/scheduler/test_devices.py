"""The scheduler on devices: lanes are rows of arrays there, and answers are those that requests get alone."""

from __future__ import annotations

import gc
from functools import cache

import numpy as np
import pytest

from backend.host_device import HostDevice, host_backend
from scheduler.test_scheduler import WAIT, Pace, begun, endless, idle, mixed, same
from vlkv import Engine, Question
from vlkv.backend.onnxruntime_device import device_backend
from vlkv.errors import EngineError, MemoryLimitError
from vlkv.model import Model
from vlkv.storage.manifest import read
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

pytest.importorskip("cuda.bindings.runtime")
LIMITS = {"capacity": 512, "batch": 6, "chunk": 64}


@pytest.fixture(scope="module")
def opened(graphs_of, tmp_path_factory):
    """Engines by kind, and the stand-in's driver."""
    from backend.cuda_stand_in import StandIn
    from backend.stand_in import Kernels, open_engine, write_engine

    driver = StandIn(memory=1 << 28)

    @cache
    def make(kind):
        folder = tmp_path_factory.mktemp("engine") / "e"
        if kind == "onnxruntime":
            settings = Settings(dtype="float16", **LIMITS)
            build_engine(graphs_of("llama-gqa-tied"), folder, operators="functions", settings=settings)
            facts, provider = read(folder), ["CPUExecutionProvider"]
            found = device_backend(folder, facts, HostDevice(), "cpu", provider)
            return Engine(folder, Model.of(folder, facts, found))
        if kind == "host":
            found, facts = host_backend(graphs_of("llama-gqa-tied"), folder, "native", "in-place", **LIMITS)
            return Engine(folder, Model.of(folder, facts, found))
        manifest = write_engine(graphs_of("llama-gqa-tied"), folder, "native", "in-place", **LIMITS)
        return open_engine(folder, manifest, driver, kernels=Kernels(driver))

    yield make, driver
    make("stand-in").close()
    gc.collect()
    assert driver.broken == []
    assert driver.leaks() == []


def alike(one, other):
    """Whether two answers agree; a lane is as large as the largest answer, so that the bytes of its cache differ."""
    other.cache_bytes = one.cache_bytes
    return same(one, other)


@pytest.mark.parametrize("kind", ["onnxruntime", "host", "stand-in"])
def test_answers_are_those_of_requests_alone(opened, kind, pictures, rng):
    make, driver = opened
    engine = make(kind)
    questions = mixed(rng, pictures, 12 if kind == "onnxruntime" else 24, engine)
    alone = [engine.generate_batch([question])[0] for question in questions]
    # chunks as large as alone: shares of pairs are rounded once a chunk
    for slots, memory in ((5, 1 << 25), (3, 1 << 23)):
        with engine.scheduler(slots=slots, chunk=1024, memory=memory, capacity=200) as scheduler:
            tickets = [scheduler.submit(question) for question in questions]
            together = [ticket.wait(WAIT) for ticket in tickets]
            stats = scheduler.stats()
            assert idle(scheduler)
        for question, one, other in zip(questions, alone, together, strict=True):
            assert alike(one, other), question
        assert stats.rows > 1.1 * stats.steps, "answers did not run side by side"
    assert driver.broken == []


def test_lanes_give_their_memory_back(opened, pictures):
    make, driver = opened
    engine = make("stand-in")
    device = engine.model.backend.device
    question = Question("what is the total", pictures[:1], policy="h2o", budget=0.5, max_new_tokens=8)
    engine.generate_batch([question])
    device.synchronize()
    before = device.used
    for drain in (True, False):
        scheduler = engine.scheduler(slots=3, memory=1 << 24)
        assert device.used > before
        tickets = [scheduler.submit(question) for _ in range(7)]
        tickets[0].wait(WAIT)
        assert scheduler.close(drain=drain, timeout=WAIT)
        del scheduler, tickets
        device.use()
        device.synchronize()
        assert device.used == before == driver.bytes()
    assert driver.broken == []


def test_steps_of_a_batch_size_are_recorded_once(opened):
    """However many answers come and go, a size is bound and recorded once; later steps are launches."""
    make, driver = opened
    engine = make("stand-in")
    question = Question("what is", policy="full", max_new_tokens=6, stop=("never",))
    with engine.scheduler(slots=3, memory=1 << 24) as scheduler:
        for _ in range(3):
            for ticket in [scheduler.submit(question) for _ in range(6)]:
                ticket.wait(WAIT)
        lanes = scheduler._worker._lanes
        assert 1 <= len(lanes._steps) <= 3
        launched, steps = driver.calls["cudaGraphLaunch"], scheduler.stats().steps
        for ticket in [scheduler.submit(question) for _ in range(6)]:
            ticket.wait(WAIT)
        more = scheduler.stats().steps - steps
        assert driver.calls["cudaGraphLaunch"] - launched >= more - 6


def test_a_step_that_fails_ends_its_answers_and_no_others(opened, monkeypatch):
    from backend.tensorrt_stand_in import IExecutionContext

    make, driver = opened
    engine, execute = make("stand-in"), IExecutionContext.execute_async_v3
    question = Question("what is the total", policy="full", max_new_tokens=6)
    alone = engine.generate_batch([question])[0]
    with engine.scheduler(slots=2, memory=1 << 24) as scheduler:
        with monkeypatch.context() as patch:
            patch.setattr(
                IExecutionContext,
                "execute_async_v3",
                lambda context, stream: (
                    context._say("planted") if context.profile == 1 else execute(context, stream)
                ),
            )
            with pytest.raises(EngineError, match="planted"):
                scheduler.submit(question).wait(WAIT)
        assert alike(alone, scheduler.submit(question).wait(WAIT))
        assert idle(scheduler)
    assert driver.broken == []


def test_nan_of_one_answer_does_not_reach_the_next(opened):
    """A lane is cleared when it is free: slots past the length weigh 0, and 0 times NaN is NaN."""
    from backend.host_device import view

    make, _ = opened
    engine = make("host")
    question = Question("what is the total", policy="full", max_new_tokens=5)
    alone = engine.generate_batch([question])[0]
    with engine.scheduler(slots=1, memory=1 << 24) as scheduler:
        lanes = scheduler._worker._lanes
        for array in (*lanes._keys, *lanes._values):
            view(array)[...] = np.nan
        lanes.release(0)
        assert alike(alone, scheduler.submit(question).wait(WAIT))


def test_cancelling(opened, monkeypatch):
    make, driver = opened
    engine, pace = make("stand-in"), Pace()
    steps = engine.model.backend.steps

    def held(cache):
        made = steps(cache)
        step = made.step
        made.step = lambda *given: (pace.take(), step(*given))[1]
        return made

    monkeypatch.setattr(engine.model.backend, "steps", held)
    with engine.scheduler(slots=1, memory=1 << 24) as scheduler:
        first, second = scheduler.submit(endless()), scheduler.submit(endless())
        assert begun(first)
        second.cancel()
        first.cancel()
        pace.open()
        assert {ticket.wait(WAIT).finish_reason for ticket in (first, second)} == {"cancelled"}
        assert idle(scheduler)
    assert driver.broken == []


def test_what_can_never_run_is_refused(opened, graphs_of, tmp_path):
    make, _ = opened
    engine = make("stand-in")
    for settings, wanted in (
        ({"memory": 1000}, "give each slot none"),
        ({"slots": 0}, "slots 0 is under 1"),
        ({"capacity": 1000}, r"built for 512: .*--capacity"),
        ({"memory": 1 << 21, "capacity": 512}, "does not hold 6 slots of 512 tokens"),
        ({"memory": 0}, "memory 0 is under 1"),
    ):
        with pytest.raises(MemoryLimitError, match=wanted):
            engine.scheduler(**settings)
    with engine.scheduler(slots=64, memory=1 << 24) as scheduler:
        assert scheduler.plan.slots == 6
        assert scheduler.plan.reserved == sum(
            array.nbytes for array in (*scheduler._worker._lanes._keys, *scheduler._worker._lanes._values)
        )
        assert scheduler.plan.reserved + scheduler.plan.prompt_tokens <= scheduler.plan.memory
    for number, caches in enumerate(("static", "dynamic")):
        found, facts = host_backend(graphs_of("llama-gqa-tied"), tmp_path / str(number), "native", caches)
        refused = Engine(tmp_path, Model.of(tmp_path / str(number), facts, found))
        with pytest.raises(EngineError, match=f"caches are {caches}; .*--cache in-place"):
            refused.scheduler()
