"""ONNX Runtime on CUDA: the session is asked what it runs on, and every address is bound on the device asked for."""

from __future__ import annotations

import gc

import numpy as np
import onnxruntime as ort
import pytest

from backend.cuda_stand_in import StandIn
from backend.stand_in import installed
from vlkv import Engine
from vlkv.backend import kernels
from vlkv.backend.onnxruntime_device import CUDA
from vlkv.backend.registry import parse_device
from vlkv.errors import EngineError
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

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

    def bind_cpu_input(self, name, array):
        self.real.bind_cpu_input(name, array)

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


@pytest.fixture(scope="module")
def engine(graphs_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "e"
    build_engine(
        graphs_of("llama-gqa-tied"), folder, operators="functions", settings=Settings(dtype="float16")
    )
    return folder


@pytest.mark.parametrize("policy", ["vl-cache", "h2o"])
def test_answers_on_the_second_device(policy, cuda, engine, built_of, monkeypatch):
    monkeypatch.setattr(Binding, "index", 1)
    folder = engine
    settings = {"policy": policy, "budget": 0.5, "max_new_tokens": 8}
    with Engine.load(folder, device="cuda:1") as opened:
        got = opened.generate("what is the total", **settings)
        options = opened.model.backend.graphs["decoder"]._session.asked[0][1]
        assert options["device_id"] == "1"
        assert int(options["user_compute_stream"]) == int(opened.model.backend.device.stream)
    monkeypatch.setattr(ort, "InferenceSession", Session.real)
    # the tiny checkpoint's choices are far apart, so that 16 bits change none
    alone = Engine.load(built_of("llama-gqa-tied"), threads=1)
    assert got.token_ids == alone.generate("what is the total", **settings).token_ids


def test_a_session_that_fell_back_to_the_cpu_is_refused(cuda, engine, monkeypatch):
    monkeypatch.setattr(Session, "works", False)
    with pytest.raises(EngineError, match=r"opened compress\.onnx with CPUExecutionProvider, not CUDA"):
        Engine.load(engine, device="cuda")


def test_a_graph_that_fails_is_one_line(cuda, engine, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error 700\nmore of it")

    with Engine.load(engine, device="cuda") as opened:
        monkeypatch.setattr(Session, "run_with_iobinding", fail)
        with pytest.raises(EngineError, match=r"can't run a graph on the device: CUDA error 700$"):
            opened.generate("total")


@pytest.mark.parametrize("text", ["cuda:", "cuda:a", "cuda:-1", "cuda:1000", "cpu:0", "tpu:1"])
def test_devices_that_are_none(text):
    with pytest.raises(EngineError, match="unknown device"):
        parse_device(text)
    assert parse_device("cuda:12") == ("cuda", 12)


def test_operators_need_a_vlkv_with_kernels(cuda, graphs_of, tmp_path):
    build_engine(graphs_of("llama-gqa-tied"), tmp_path / "e", settings=Settings(dtype="bfloat16"))
    if kernels.find() is not None:
        pytest.skip("this vlkv has CUDA kernels")
    with pytest.raises(EngineError, match=r"built without CUDA kernels, .* -C cmake\.define\.VLKV_CUDA=ON"):
        Engine.load(tmp_path / "e", device="cuda")
