"""Decode steps that ONNX Runtime records: the CPU's tokens, each recording with its own memory, and fallbacks."""

from __future__ import annotations

import gc

import onnxruntime as ort
import pytest

from backend.cuda_stand_in import OK, StandIn
from backend.onnxruntime_stand_in import Binding, Session
from backend.stand_in import Kernels, installed
from vlkv import Engine, Question
from vlkv.backend import onnxruntime_device, onnxruntime_graphs
from vlkv.backend.cuda import CudaDevice
from vlkv.backend.onnxruntime_device import CUDA, device_backend
from vlkv.backend.onnxruntime_graphs import UNRECORDED, Recordings
from vlkv.model import Model
from vlkv.storage.manifest import read
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

pytest.importorskip("cuda.bindings.runtime")

SHAPE = "llama-gqa-tied"


@pytest.fixture(scope="module")
def folders(graphs_of, tmp_path_factory):
    """Engine directories by operators."""
    base, made = tmp_path_factory.mktemp("engines"), {}
    for operators in ("native", "functions"):
        made[operators] = base / operators
        settings = Settings(dtype="float16", capacity=128, batch=3, chunk=64)
        build_engine(graphs_of(SHAPE), made[operators], operators=operators, settings=settings)
    return made


@pytest.fixture
def driver(monkeypatch):
    """The driver; at its end nothing is left and no rule was broken."""
    found = StandIn()
    monkeypatch.setattr(ort, "InferenceSession", Session)
    for kind in (Binding, Session):
        monkeypatch.setattr(kind, "driver", found, raising=False)
    monkeypatch.setattr(Session, "recorded", 0)
    monkeypatch.setattr(Session, "launched", 0)
    with installed(found):
        yield found
    gc.collect()
    assert (found.broken, found.leaks(), found.graphs) == ([], [], [])


@pytest.fixture
def opened(folders, driver, request, monkeypatch):
    """Opens an engine whose decode steps are recorded; it is closed at the end.

    It is one of functions, as emulated operators are slow: the stand-in records loops too.
    """
    engines = []

    def make(operators="functions", loops=True):
        if loops:
            monkeypatch.setattr(onnxruntime_device, "UNRECORDABLE", {})
        folder, device = folders[operators], CudaDevice(0, Kernels(driver))
        settings = {"device_id": "0", "user_compute_stream": str(int(device.stream))}
        library = request.getfixturevalue("emulated") if operators == "native" else None
        facts = read(folder)
        found = device_backend(folder, facts, device, "cuda", [(CUDA, settings), "CPU"], 0, library, True)
        engines.append(Engine(folder, Model.of(folder, facts, found)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def answers(engine, policy="full", tokens=5):
    budget = None if policy == "full" else 0.5
    question = Question("what is the total", [], policy, budget, max_new_tokens=tokens)
    return engine.generate_batch([question])[0].token_ids


def reference(engine_of, policy="full", tokens=5):
    """The CPU's tokens; the tiny checkpoint's choices are far apart, so that 16 bits change none."""
    return answers(engine_of(SHAPE), policy, tokens)


@pytest.mark.parametrize("policy", ["full", "h2o"])
def test_recorded_steps_give_the_same_tokens(policy, opened, engine_of):
    """Five tokens are four steps. The first runs directly; the second is recorded, and launched from then on."""
    want = reference(engine_of, policy)
    engine = opened()
    assert engine.model.backend.notes == []
    assert answers(engine, policy) == want
    assert Session.recorded == 1
    assert Session.launched == len(want) - 2


def test_recorded_steps_of_operators(opened, engine_of):
    engine = opened("native", loops=False)
    assert engine.model.backend.notes == []
    assert answers(engine, tokens=3) == reference(engine_of, tokens=3)
    assert Session.recorded == 1


def test_a_recording_is_never_launched_with_other_memory(opened, engine_of):
    """Every answer has arrays of its own here: the stand-in uses no address twice, and sees what was freed."""
    engine = opened()
    for tokens in (3, 4):
        assert answers(engine, tokens=tokens) == reference(engine_of, tokens=tokens)
    assert Session.recorded == 2


def test_there_are_at_most_so_many(opened, engine_of, monkeypatch):
    monkeypatch.setattr(onnxruntime_graphs, "MOST", 1)
    engine = opened()
    for _ in range(2):
        assert answers(engine, tokens=4) == reference(engine_of, tokens=4)
    assert (Session.recorded, Session.launched) == (1, 2)


def test_equal_bindings_share_a_recording():
    recordings = Recordings(None, [])
    first, second = (("logits", 256, (1, 9)),), (("logits", 512, (1, 9)),)
    assert [recordings.number(bound) for bound in (first, second, first)] == [1, 2, 1]
    assert UNRECORDED not in (1, 2)


def test_a_graph_that_cannot_be_recorded_runs_directly(opened, engine_of, monkeypatch):
    monkeypatch.setattr(Session, "refuses", True)
    engine = opened()
    (note,) = engine.model.backend.notes
    assert note.startswith("decode steps are not recorded as CUDA graphs: ")
    assert "decoder.onnx" in note and "nodes have not been partitioned" in note and "\n" not in note
    assert answers(engine, tokens=4) == reference(engine_of, tokens=4)
    assert Session.recorded == 0


def test_engines_of_functions_are_not_recorded(opened, engine_of):
    engine = opened(loops=False)
    assert engine.model.backend.notes == [
        "decode steps are not recorded as CUDA graphs: with --operators functions, the body of Score has a loop"
    ]
    assert answers(engine, tokens=4) == reference(engine_of, tokens=4)
    assert Session.recorded == 0


def test_a_recording_that_fails_leaves_the_stream_usable(opened, engine_of, driver, monkeypatch):
    """The step runs again directly, and nothing is recorded from then on."""
    monkeypatch.setattr(Session, "fails", True)
    engine = opened()
    assert answers(engine, tokens=4) == reference(engine_of, tokens=4)
    (note,) = engine.model.backend.notes
    assert note.endswith(
        "any more: ONNX Runtime can't run a graph on the device: CUDA failure 900: operation not "
        "permitted when stream is capturing"
    )
    assert driver.error == OK
    assert Session.recorded == 0
