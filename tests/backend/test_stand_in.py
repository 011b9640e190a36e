"""All of the device layer under CUDA's and TensorRT's rules: the CPU's answers, no rule broken, nothing left behind."""

from __future__ import annotations

import gc
import inspect
import weakref
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest

from backend.cuda_stand_in import StandIn
from backend.stand_in import Kernels, installed, open_engine, write_engine
from backend.tensorrt_stand_in import ICudaEngine, IExecutionContext, IRuntimeConfig
from vlkv import Question
from vlkv.backend.cuda import CudaDevice, CudaReplay, compute_capability
from vlkv.errors import EngineError
from vlkv.generation.sequence import prepare

runtime = pytest.importorskip("cuda.bindings.runtime")

QUESTION = "what is the total of the form"
KINDS = [
    ("native", "in-place", True),
    ("native", "static", True),
    ("native", "dynamic", False),
    ("functions", "dynamic", True),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def opened(request, graphs_of, tmp_path_factory):
    """An engine and its driver."""
    operators, cache, rtx = request.param
    folder = tmp_path_factory.mktemp("engine") / "e"
    manifest = write_engine(graphs_of("llama-gqa-tied"), folder, operators, cache)
    driver = StandIn()
    # one kind has the kernels that move slots and pick tokens; the others copy slot by slot, and logits to the host
    kernels = Kernels(driver) if cache == "in-place" else None
    engine = open_engine(folder, manifest, driver, rtx, kernels=kernels)
    yield engine, driver
    engine.close()
    gc.collect()
    assert driver.broken == []
    assert driver.leaks() == []
    assert kernels is None or (kernels.moves > 20 and kernels.picks > 0)


@pytest.fixture(scope="module")
def cpu(built_of):
    from vlkv import Engine

    return Engine.load(built_of("llama-gqa-tied", "native"), threads=1)


@pytest.fixture(autouse=True)
def no_cycles():
    """Memory has to come back without the collector of cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def settled(engine, driver):
    """Bytes on the device, once what is free was given back; working memory of the graphs stays."""
    device = engine.model.backend.device
    device.synchronize()
    assert device.used == driver.bytes()
    return device.used


@pytest.mark.parametrize("policy", ["full", "vl-cache", "h2o", "streaming-llm", "elastic", "snapkv"])
def test_answers_are_the_cpus(policy, opened, cpu, pictures):
    engine, driver = opened
    settings = {"policy": policy, "max_new_tokens": 12, "images": [str(pictures[0])]}
    settings |= {} if policy == "full" else {"budget": 0.4}
    want = cpu.generate(QUESTION, **settings)
    engine.generate("total", max_new_tokens=2)
    before = settled(engine, driver)
    got = engine.generate(QUESTION, **settings)
    assert got.token_ids == want.token_ids
    assert got.kept_tokens == want.kept_tokens
    for mine, theirs in zip(got.positions or [], want.positions or [], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert settled(engine, driver) == before
    assert driver.broken == []


def test_steps_are_recorded_and_wait_once(opened, cpu):
    """A long answer: one copy there, the graph, one wait; nothing is allocated or pinned a token."""
    engine, driver = opened
    for policy in ("full", "h2o"):
        settings = {"policy": policy, "max_new_tokens": 24} | ({} if policy == "full" else {"budget": 0.5})
        found = []
        for one in (cpu, engine):
            seen = []
            asked = [prepare(one.model, Question(QUESTION, **settings))]
            pieces = one.answers(asked, endless=True)
            for piece in pieces:  # noqa: B007
                seen.append(dict(driver.calls))
            found.append(piece[2].token_ids)
        assert found[0] == found[1]
        # the first steps bind and record, of both sets of arrays where there are two
        steps = [
            {name: after[name] - before.get(name, 0) for name in after}
            for before, after in pairwise(seen[8:])
        ]
        assert len(steps) > 5
        for step in steps:
            assert step["cudaStreamSynchronize"] == 1
            # the kernel and its copy come after the wait, and before the next step; else each slot is a copy
            assert step["cudaGraphLaunch"] == 1
            if policy == "full":
                assert step.get("copies", 0) == 0
            assert step["cudaMallocAsync"] == step["cudaMallocHost"] == 0
    assert driver.broken == []


@pytest.mark.parametrize("settings", [{}, {"top_k": 7}, {"top_p": 0.7}])
def test_drawn_answers_are_the_cpus(settings, opened, cpu):
    """By the kernel where there is one, in recorded steps; else from logits on the host."""
    engine, driver = opened
    asked = settings | {"policy": "full", "temperature": 1.4, "seed": 6, "max_new_tokens": 12}
    kernels = engine.model.backend.device._kernels
    before = kernels.drawn if kernels is not None else 0
    got = engine.generate(QUESTION, **asked)
    assert got.token_ids == cpu.generate(QUESTION, **asked).token_ids
    # two steps enqueue the kernel: the first, and the one that is recorded
    assert kernels is None or kernels.drawn - before == min(2, len(got.token_ids) - 1)
    assert driver.broken == []


def test_batches_and_chats(opened, cpu, pictures):
    engine, driver = opened
    questions = [
        Question("total", [str(pictures[0])], "vl-cache", 0.5, max_new_tokens=9),
        Question("what is the name of the city", [], "full", max_new_tokens=4),
        Question("date", [str(pictures[1])], "h2o", 0.3, max_new_tokens=7),
    ]
    before = settled(engine, driver)
    for got, want in zip(engine.generate_batch(questions), cpu.generate_batch(questions), strict=True):
        assert got.token_ids == want.token_ids
    for keep in ("compressed", "reusable"):
        answers = []
        for one in (cpu, engine):
            chat = one.chat("vl-cache", 0.5, keep)
            first = chat.ask("what is the total", images=[str(pictures[0])], max_new_tokens=5)
            answers.append((first.token_ids, chat.ask("and the date", max_new_tokens=5).token_ids))
        assert answers[0] == answers[1]
        del chat
    assert settled(engine, driver) == before
    assert driver.broken == []


def test_errors_in_the_middle_leave_nothing(opened, monkeypatch):
    """An answer that fails in a step, while it is recorded, or in prefill; and one that no one reads to its end."""
    engine, driver = opened
    engine.generate(QUESTION, policy="full", max_new_tokens=4)
    before, backend = settled(engine, driver), engine.model.backend
    pieces = iter(engine.stream(QUESTION, policy="full", max_new_tokens=20))
    for _ in range(3):
        next(pieces, None)
    del pieces
    assert settled(engine, driver) == before

    calls, execute = [], IExecutionContext.execute_async_v3

    for fails in (1, 2, 4, 5, 6):

        def failing(context, stream, fails=fails):
            calls.append(1)
            return execute(context, stream) if len(calls) != fails else context._say("planted")

        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(IExecutionContext, "execute_async_v3", failing)
            try:
                engine.generate(QUESTION, policy="full", max_new_tokens=6)
            except EngineError as error:
                assert "planted" in str(error)
        assert settled(engine, driver) == before, fails
    assert backend.device._capturing is False
    assert driver.broken == []


@pytest.mark.slow
def test_a_thousand_short_answers(opened):
    engine, driver = opened
    kinds = [("full", None), ("vl-cache", 0.5), ("h2o", 0.5)]
    engine.generate("total", policy="h2o", budget=0.5, max_new_tokens=3)
    before, pinned, contexts = None, None, None
    for number in range(1000 if engine.manifest.device.cache == "in-place" else 60):
        policy, budget = kinds[number % 3]
        engine.generate("total", policy=policy, budget=budget, max_new_tokens=1 + number % 3)
        if number == 20:
            before, pinned = settled(engine, driver), driver.bytes("pinned")
            contexts = driver.calls["cudaMallocHost"]
    assert settled(engine, driver) == before
    assert driver.bytes("pinned") == pinned
    assert driver.calls["cudaMallocHost"] == contexts
    assert driver.broken == []


def test_steps_are_in_no_cycle(opened):
    from vlkv.backend.cache import Cache

    engine, _ = opened
    backend, text = engine.model.backend, engine.manifest.text
    cache = Cache.empty(text, 24, backend.store)
    embeds = np.zeros((1, 4, text.hidden), np.float32)
    backend.extend(embeds, np.arange(4)[np.newaxis], cache, np.zeros((1, 0), np.int64), True)
    steps = backend.steps(cache)
    for place in range(4, 8):
        steps.step(embeds[:, 0], np.array([place]), np.array([True]))
    gone = weakref.ref(steps)
    del steps
    assert gone() is None


def test_memory_freed_while_work_is_recorded_waits():
    driver = StandIn()
    with installed(driver):
        device = CudaDevice()
    held = [device.allocate((100,), "float32") for _ in range(3)]
    target = device.allocate((100,), "float32")

    def work(target=target):
        device.clear(target)
        held.clear()

    replay = CudaReplay(device, work)
    replay()
    held.extend(device.allocate((100,), "float32") for _ in range(3))
    replay()
    assert device.used == 400 and driver.bytes() == 400
    replay.close()
    del target, work, replay
    device.close()
    assert (driver.broken, driver.leaks()) == ([], [])


def test_work_that_allocates_is_not_recorded():
    driver = StandIn()
    with installed(driver):
        device = CudaDevice()
    kept = []
    replay = device.replay(lambda: kept.append(device.allocate((1,), "float32")))
    for _ in range(4):
        replay()
    assert len(kept) == 4
    assert driver.broken == []
    replay.close()
    kept.clear()
    device.close()
    assert driver.leaks() == []


def test_pinned_memory_is_used_again_after_a_wait_only():
    driver = StandIn()
    with installed(driver):
        device = CudaDevice()
    first = device.pinned((10,), "float32")
    place = first.ctypes.data
    del first
    assert device.pinned((10,), "float32").ctypes.data != place
    device.synchronize()
    again = {device.pinned((10,), "float32").ctypes.data for _ in range(2)}
    assert place in again and driver.calls["cudaMallocHost"] == 2
    kept = device.pinned((10,), "float32")
    device.close()
    kept[:] = 1
    assert driver.leaks() == ["pinned memory of 4096 bytes"]


def test_two_devices(graphs_of, tmp_path, cpu):
    """Each thread says which device its calls are for."""
    from threading import Thread

    manifest = write_engine(graphs_of("llama-gqa-tied"), tmp_path / "e", "native", "in-place")
    driver = StandIn(devices=2)
    engines = [open_engine(tmp_path / "e", manifest, driver, index=index) for index in range(2)]
    found = {}

    def ask(number):
        found[number] = engines[number].generate(QUESTION, policy="vl-cache", budget=0.5, max_new_tokens=8)

    for number in (0, 1, 0):
        thread = Thread(target=ask, args=(number,))
        thread.start()
        thread.join()
    want = cpu.generate(QUESTION, policy="vl-cache", budget=0.5, max_new_tokens=8)
    assert [found[number].token_ids for number in range(2)] == [want.token_ids] * 2
    for engine in engines:
        engine.close()
    assert (driver.broken, driver.leaks()) == ([], [])
    with installed(driver), pytest.raises(EngineError, match="no GPU 2; it has 2"):
        compute_capability((), 2)


def test_the_drivers_pool_keeps_what_is_freed():
    driver = StandIn()
    with installed(driver):
        device = CudaDevice()
    assert driver.thresholds == {0: 2**64 - 1}
    assert device.free == 1 << 30
    held = device.allocate((1 << 20,), "float32")
    assert device.free == (1 << 30) - held.nbytes + 0
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        device.allocate((1 << 30,), "float32")
    del held
    device.close()


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (lambda d, a: d._cuda.cudaFreeAsync(a.pointer + 256, d.stream), "is no device memory"),
        (lambda d, a: [d._cuda.cudaFreeAsync(a.pointer, d.stream) for _ in range(2)], "freed twice"),
        (lambda d, a: (d._cuda.cudaFreeAsync(a.pointer, d.stream), d.clear(a)), "use after free"),
        (lambda d, a: d._cuda.cudaMemsetAsync(a.pointer, 0, 1 << 20, d.stream), "outside any allocation"),
        (
            lambda d, a: d._cuda.cudaMemcpy2DAsync(a.pointer, 4, a.pointer, 4, 8, 2, d._kinds[0], d.stream),
            "pitches",
        ),
        (lambda d, a: d.record(d.synchronize), "waited for"),
        (lambda d, a: d.record(lambda: d._cuda.cudaFreeAsync(a.pointer, d.stream)), "freed on a stream"),
        (lambda d, a: d.record(lambda: d._cuda.cudaMallocHost(64)), "pinned memory was allocated"),
        (lambda d, a: d.upload(a, np.zeros(64, np.float32)), "outside any allocation"),
    ],
)
def test_the_stand_in_sees_what_is_forbidden(broken, rule):
    driver = StandIn()
    with installed(driver):
        device = CudaDevice()
    array = device.allocate((64,), "float32")
    with suppress(EngineError):
        broken(device, array)
    assert any(rule in text for text in driver.broken), driver.broken


def test_the_stand_in_has_the_real_signatures():
    """Of every function that it has, as the package that is installed says."""
    for name, function in inspect.getmembers(StandIn, inspect.isfunction):
        if not name.startswith("cuda"):
            continue
        real = inspect.signature(getattr(runtime, name))
        assert len(real.parameters) == len(inspect.signature(function).parameters) - 1, name
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    for ours, theirs in (
        (ICudaEngine, trt.ICudaEngine),
        (IExecutionContext, trt.IExecutionContext),
        (IRuntimeConfig, trt.IRuntimeConfig),
    ):
        for name in vars(ours):
            if not name.startswith("_"):
                assert hasattr(theirs, name), (ours, name)
