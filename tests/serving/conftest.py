"""A real tritonserver with the engine of the shipped checkpoint. These tests are skipped if none is installed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vlkv import Engine
from vlkv.errors import VlkvError

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed: make .venv/served")
pytest.importorskip("aiohttp", reason="aiohttp is not installed: make .venv/served")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny_vlm"


@pytest.fixture(scope="session")
def installed():
    """Skips the test if there is no server."""
    from vlkv.serving.triton.server import find

    try:
        return find()
    except VlkvError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The engine directory of the shipped checkpoint."""
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.engine import build_engine

    base = tmp_path_factory.mktemp("shipped")
    export_checkpoint(EXAMPLE / "checkpoint", base / "graphs")
    build_engine(base / "graphs", base / "engine")
    return base / "engine"


@pytest.fixture(scope="session")
def opened(shipped):
    """The same engine in this process."""
    return Engine.load(shipped, threads=1)


@pytest.fixture(scope="session")
def picture():
    return (EXAMPLE / "example.png").read_bytes()


@pytest.fixture(scope="session")
def server(installed, shipped, tmp_path_factory):
    """Runs a server with the model `vlkv` and two models whose engines are damaged and missing."""
    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import Server

    base = tmp_path_factory.mktemp("serving")
    repository = base / "model_repository"
    write_repository(Settings(str(shipped), slots=4, memory="32MiB", threads=1), shipped, repository)
    for name in ("damaged", "missing"):
        broken = base / name
        shutil.copytree(shipped, broken)
        write_repository(Settings(str(broken), name=name), broken, repository)
        if name == "missing":
            shutil.rmtree(broken)
            continue
        weights = broken / "decoder.onnx"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.unlink()
        weights.write_bytes(data)
    with Server(repository, base / "server.log", grace=5) as running:
        running.wait(timeout=300)
        yield running


@pytest.fixture(scope="session")
def long_answer(opened):
    """Returns settings that give an answer of over 300 tokens, and that answer."""
    for seed in range(1000):
        settings = {"prompt": "type?", "temperature": 50.0, "seed": seed}
        result = opened.generate(**settings, max_new_tokens=900)
        if len(result.token_ids) > 300:
            return {**settings, "max_tokens": 900}, result
    raise AssertionError("no long answer")


@pytest.fixture(scope="module")
def grpc_client(server):
    """Returns the shipped client's module and a connection."""
    sys.path.insert(0, str(ROOT / "examples" / "triton"))
    try:
        import grpc_stream
    finally:
        sys.path.pop(0)
    return grpc_stream, grpc_stream.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
