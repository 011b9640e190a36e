"""ONNX Runtime on CUDA: the session is asked what it runs on, and every address is bound on the device asked for."""

from __future__ import annotations

import gc

import onnxruntime as ort
import pytest

from backend.cuda_stand_in import StandIn
from backend.onnxruntime_stand_in import Binding, Session
from backend.stand_in import installed
from vlkv import Engine
from vlkv.backend import kernels, onnxruntime_device
from vlkv.backend.onnxruntime_device import CUDA
from vlkv.backend.registry import parse_device
from vlkv.errors import EngineError
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def cuda(monkeypatch):
    driver = StandIn(devices=2)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(Binding, "driver", driver, raising=False)
    monkeypatch.setattr(Session, "driver", driver, raising=False)
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


def test_float8_needs_a_newer_gpu(cuda, graphs_of, tmp_path, monkeypatch):
    settings = Settings(dtype="bfloat16")
    build_engine(
        graphs_of("llama-gqa-tied"),
        tmp_path / "e",
        operators="functions",
        kv_dtype="float8",
        settings=settings,
    )
    monkeypatch.setattr(onnxruntime_device, "compute_capability", lambda needed, index: "8.6")
    with pytest.raises(
        EngineError, match=r"float8 need a GPU of compute capability 8\.9 or later, not 8\.6; build"
    ):
        Engine.load(tmp_path / "e", device="cuda")


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
