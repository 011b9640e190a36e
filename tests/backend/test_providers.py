"""ONNX Runtime on CUDA: the session is asked what it runs on, and every address is bound on the device asked for."""

from __future__ import annotations

import gc

import numpy as np
import onnxruntime as ort
import pytest

from backend.cuda_stand_in import StandIn
from backend.stand_in import installed
from vlkv import Engine
from vlkv.backend.onnxruntime_device import CUDA
from vlkv.backend.registry import parse_device
from vlkv.errors import EngineError

pytest.importorskip("cuda.bindings.runtime")


class Session:
    """An ONNX Runtime that has CUDA's provider, or says so and then runs on the CPU."""

    real = ort.InferenceSession
    works = True

    def __init__(self, path, options, providers):
        self.asked = providers
        self._session = Session.real(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return [CUDA, "CPUExecutionProvider"] if self.works else ["CPUExecutionProvider"]

    def io_binding(self):
        return Binding(self._session)

    def run_with_iobinding(self, binding, options):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        binding.driver.cudaStreamSynchronize(next(iter(binding.driver.streams)))
        self._session.run_with_iobinding(binding.real)


class Binding:
    """Binds what CUDA's provider would get as the CPU's: the stand-in's memory is the host's."""

    driver: StandIn
    index = 0

    def __init__(self, session):
        self.real = session.io_binding()

    def bind_input(self, name, kind, index, dtype, shape, pointer):
        self._check(kind, index, dtype, shape, pointer)
        self.real.bind_input(name, "cpu", 0, dtype, shape, pointer)

    def bind_output(self, name, kind, index, dtype, shape, pointer):
        self._check(kind, index, dtype, shape, pointer)
        self.real.bind_output(name, "cpu", 0, dtype, shape, pointer)

    def _check(self, kind, index, dtype, shape, pointer):
        assert (kind, index) == ("cuda", self.index)
        assert self.driver.touch(pointer, int(np.prod(shape)) * dtype.itemsize, "a binding")


@pytest.fixture
def cuda(monkeypatch):
    driver = StandIn(devices=2)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(Binding, "driver", driver, raising=False)
    with installed(driver):
        yield driver
    gc.collect()
    assert (driver.broken, driver.leaks()) == ([], [])


@pytest.mark.parametrize("policy", ["vl-cache", "h2o"])
def test_answers_on_the_second_device(policy, cuda, built_of, monkeypatch):
    monkeypatch.setattr(Binding, "index", 1)
    folder = built_of("llama-gqa-tied", "functions")
    settings = {"policy": policy, "budget": 0.5, "max_new_tokens": 8}
    with Engine.load(folder, device="cuda:1") as engine:
        got = engine.generate("what is the total", **settings)
        options = engine.model.backend.graphs["decoder"]._session.asked[0][1]
        assert options["device_id"] == "1"
        assert int(options["user_compute_stream"]) == int(engine.model.backend.device.stream)
    monkeypatch.setattr(ort, "InferenceSession", Session.real)
    assert got.token_ids == Engine.load(folder, threads=1).generate("what is the total", **settings).token_ids


def test_a_session_that_fell_back_to_the_cpu_is_refused(cuda, built_of, monkeypatch):
    monkeypatch.setattr(Session, "works", False)
    with pytest.raises(EngineError, match=r"opened vision\.onnx with CPUExecutionProvider, not CUDA"):
        Engine.load(built_of("llama-gqa-tied", "functions"), device="cuda")


def test_a_graph_that_fails_is_one_line(cuda, built_of, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error 700\nmore of it")

    with Engine.load(built_of("llama-gqa-tied", "functions"), device="cuda") as engine:
        monkeypatch.setattr(Session, "run_with_iobinding", fail)
        with pytest.raises(EngineError, match=r"can't run a graph on the device: CUDA error 700$"):
            engine.generate("total")


@pytest.mark.parametrize("text", ["cuda:", "cuda:a", "cuda:-1", "cuda:1000", "cpu:0", "tpu:1"])
def test_devices_that_are_none(text):
    with pytest.raises(EngineError, match="unknown device"):
        parse_device(text)
    assert parse_device("cuda:12") == ("cuda", 12)
