"""Triton's model class on GPUs, under the stand-ins of CUDA and TensorRT: an instance each, on its own device."""

from __future__ import annotations

import gc
import json
import sys
from unittest.mock import MagicMock

import pytest

from vlkv import Question

pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def model_class(monkeypatch):
    utils = MagicMock()
    utils.TritonModelException = type("TritonModelException", (Exception,), {})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.delitem(sys.modules, "vlkv.serving.triton.model", raising=False)
    from vlkv.serving.triton.model import TritonPythonModel

    yield TritonPythonModel
    sys.modules.pop("vlkv.serving.triton.model", None)


def test_an_instance_a_gpu(graphs_of, built_of, tmp_path, model_class):
    from backend.cuda_stand_in import StandIn
    from backend.stand_in import installed, write_engine
    from backend.tensorrt_stand_in import Module
    from vlkv import Engine
    from vlkv.serving.triton.repository import Settings, config, write_repository

    folder = tmp_path / "engine"
    write_engine(graphs_of("llama-gqa-tied"), folder, "native", "in-place", batch=4, capacity=256)
    settings = Settings(str(folder), slots=3, memory="16MiB", gpus=(0, 1), plugin=str(folder / "plugin.so"))
    write_repository(settings, folder, tmp_path / "models")
    assert "KIND_GPU gpus: [ 0, 1 ]" in config(settings)
    names = ("engine", "slots", "memory", "queue", "plugin")
    parameters = {name: {"string_value": str(getattr(settings, name))} for name in names}
    told = json.dumps({"parameters": parameters, "input": []})
    driver, models = StandIn(devices=2, memory=1 << 27), []
    question = Question("what is the total", policy="vl-cache", budget=0.5, max_new_tokens=6)
    want = Engine.load(built_of("llama-gqa-tied"), threads=1).generate_batch([question])[0]
    with installed(driver, Module(driver)):
        for number in range(2):
            model = model_class()
            model.initialize(
                {
                    "model_config": told,
                    "model_name": "vlkv",
                    "model_instance_name": f"vlkv_{number}",
                    "model_instance_kind": "GPU",
                    "model_instance_device_id": str(number),
                }
            )
            models.append(model)
    used = [driver.on(number) for number in range(2)]
    assert min(used) > 0 and used[0] == used[1]
    for model in models:
        assert model._scheduler.submit(question).wait(120).token_ids == want.token_ids
    for model in models:
        model.finalize()
    del model
    models.clear()
    gc.collect()
    assert driver.broken == []
    assert driver.leaks() == []


def test_a_gpu_that_is_not_there_is_told(graphs_of, tmp_path, model_class):
    from backend.cuda_stand_in import StandIn
    from backend.stand_in import installed, write_engine
    from backend.tensorrt_stand_in import Module

    folder = tmp_path / "engine"
    write_engine(graphs_of("llama-gqa-tied"), folder, "native", "in-place")
    driver = StandIn()
    told = {"parameters": {"engine": {"string_value": str(folder)}}, "input": []}
    with installed(driver, Module(driver)), pytest.raises(Exception, match="vlkv: this machine has no GPU 3"):
        model_class().initialize(
            {
                "model_config": json.dumps(told),
                "model_name": "vlkv",
                "model_instance_name": "vlkv_0",
                "model_instance_kind": "GPU",
                "model_instance_device_id": "3",
            }
        )
