"""Tests every backend: the same graphs give the same answers, kept positions, sparsity and cache sizes."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np
import pytest

from backend.host_device import HostDevice, host_backend
from vlkv import Engine, Question
from vlkv.backend.cuda import compute_capability
from vlkv.backend.onnxruntime_device import device_backend
from vlkv.errors import EngineError, PromptError
from vlkv.model import Model
from vlkv.storage.manifest import read
from vlkv_export.engine import build_engine
from vlkv_export.targets.spec import Settings

PLAIN = "device-functions"
HOST = [f"host-{operators}-{kind}" for operators in ("native", "functions") for kind in ("dynamic", "static")]
HOST.append("host-native-in-place")
GPU = ["tensorrt-rtx-dynamic", "tensorrt-rtx-static"]
BACKENDS = ["onnxruntime-functions", PLAIN, *HOST, *GPU, "cuda-functions", "cuda-native"]
HALF, UNIT = "float16", 2.0**-11
"""The dtype of ONNX Runtime's engines on a device, and half the distance between two of its numbers at 1."""
QUESTION = "what is the total of the form"


@pytest.fixture(scope="module")
def opened(graphs_of, built_of, tmp_path_factory):
    """Opens engines by backend and checkpoint. Skips a backend that this machine cannot run."""

    @cache
    def make(backend: str, name: str = "llama-gqa-tied") -> Engine:
        kind, _, rest = backend.partition("-")
        if kind == "onnxruntime":
            return Engine.load(built_of(name, rest), threads=1)
        if kind in ("device", "cuda"):
            if kind == "cuda":
                _gpu()
            folder = tmp_path_factory.mktemp("engine") / "e"
            settings = Settings(dtype=HALF, capacity=128, batch=3, chunk=16)
            build_engine(graphs_of(name), folder, operators=rest, settings=settings)
            if kind == "cuda":
                return Engine.load(folder, device="cuda")
            facts, provider = read(folder), ["CPUExecutionProvider"]
            return Engine(
                folder, Model.of(folder, facts, device_backend(folder, facts, HostDevice(), "cpu", provider))
            )
        folder = tmp_path_factory.mktemp("engine")
        if kind == "host":
            operators, _, caches = rest.partition("-")
            found, facts = host_backend(graphs_of(name), folder / "g", operators, caches)
            folder = built_of(name, "functions")
            return Engine(folder, Model.of(folder, facts, found))
        settings = Settings((_gpu(),), "float32", 128, 3, 16, rest.rpartition("-")[2])
        build_engine(graphs_of(name), folder / "e", "tensorrt-rtx", settings=settings)
        return Engine.load(folder / "e")

    return make


def is_narrow(backend: str) -> bool:
    """Whether its caches are of 16 bits."""
    return backend.startswith(("device", "cuda"))


def _gpu() -> str:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("no cuda-bindings")
    try:
        return compute_capability(())
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["full", "vl-cache"])
def test_the_same_answer(backend, policy, opened, pictures):
    """Prefills a prompt with a picture in chunks and decodes greedily, so a wrong slot or length changes the tokens."""
    settings = {"policy": policy, "max_new_tokens": 12}
    settings |= {"budget": 0.4} if policy == "vl-cache" else {}
    images = [str(pictures[0])]
    want = opened("onnxruntime-native").generate(QUESTION, images=images, **settings)
    got = opened(backend).generate(QUESTION, images=images, **settings)
    assert want.prompt_tokens > 8
    assert got.token_ids == want.token_ids
    assert got.kept_tokens == want.kept_tokens
    # at most one pair in a thousand is too near the threshold to tell, in 16 bits one in twenty
    np.testing.assert_allclose(got.sparsity, want.sparsity, atol=0.05 if is_narrow(backend) else 1e-3)
    for mine, theirs in zip(got.positions or [], want.positions or [], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # caches that each step writes anew are there twice
    sets = 2 if "dynamic" in backend else 1
    if "static" not in backend:
        assert got.cache_bytes == sets * want.cache_bytes // (1 + is_narrow(backend))
    assert got.cache_bytes_full == sets * want.cache_bytes_full // (1 + is_narrow(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_unequal_prompts(backend, opened, pictures):
    """Caches of several lengths are joined, and the prompts end at different steps."""
    questions = [
        Question("total", [str(pictures[0])], "vl-cache", 0.5, max_new_tokens=9),
        Question("what is the name of the city", [], "full", max_new_tokens=4),
        Question("date", [str(pictures[1])], "vl-cache", 0.3, max_new_tokens=7),
    ]
    wanted = opened("onnxruntime-native").generate_batch(questions)
    for got, want in zip(opened(backend).generate_batch(questions), wanted, strict=True):
        assert got.token_ids == want.token_ids


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("backend", [PLAIN, *HOST, *GPU])
def test_evict(backend, per_head, merge, opened, rng):
    """Evicts one layer directly. The backend keeps and merges what the operators do, and empties the slots after it."""
    from vlkv import ops
    from vlkv.backend.device.arrays import send, to_host

    found = opened(backend).model.backend
    text, device = found.text, found.device
    slots, count = 20, 7
    shape = (2, 1, text.kv_heads, slots, text.head_dim)
    key, value = rng.standard_normal(shape, np.float32).astype(found.dtype)
    score = rng.random((1, text.kv_heads, slots), np.float32)
    capacity = 128 if found.limits.cache == "static" else slots + 3
    source, target = (
        [found.store.empty((1, text.kv_heads, n, text.head_dim)) for _ in range(2)]
        for n in (slots + 3, count + 5)
    )
    assert source[0].shape[2] == capacity
    views = [array[:, :, :slots] for array in source]
    for array, given in zip(views, (key, value), strict=True):
        send(device, array, given)
    kept = found.evict(
        tuple(views), score, (count, 2, 1), tuple(a[:, :, :count] for a in target), per_head, merge
    )
    mode = "nearest_mean" if merge else "none"
    key, value = key.astype(np.float32), value.astype(np.float32)
    wanted = ops.evict(
        key, value, score, slots, count, 2, 1, count, per_head, mode, implementation="reference"
    )
    np.testing.assert_array_equal(kept, wanted[2][0])
    for array, want in zip(target, wanted[:2], strict=True):
        (result,) = to_host(device, array)
        # a mean of up to 20 numbers of size 1, summed in another order; 16 bits round it once more
        rounding = UNIT if is_narrow(backend) and merge else 0.0
        np.testing.assert_allclose(result[:, :, :count], want, rtol=rounding, atol=20 * 2.0**-23)
        assert not result[:, :, count:].any()


@pytest.mark.parametrize("backend", [PLAIN, *HOST, *GPU])
def test_watched_steps_and_overwritten_slots(backend, opened, rng):
    """Compares a token's attention, and a token that is moved into another's slot, with the cache on the host."""
    from vlkv import ops
    from vlkv.backend.cache import Cache
    from vlkv.backend.device.arrays import to_host

    engine = opened(backend)
    found, text = engine.model.backend, engine.manifest.text
    cache_ = Cache.empty(text, 24, found.store)
    embeds = rng.standard_normal((1, 6, text.hidden), np.float32)
    found.extend(embeds, np.arange(6)[np.newaxis], cache_, np.zeros((1, 0), np.int64), True)
    steps = found.steps(cache_)
    everyone = np.array([True])
    steps.step(embeds[:, 0], np.array([6]), everyone)
    steps.step(embeds[:, 1], np.array([7]), everyone, everyone)
    seen = steps.observation
    assert seen.sparsity.shape == (text.layers, 1)
    for layer in range(text.layers):
        score = seen.scores[layer][0, :, :8]
        # each head of a group adds its row's weights, which sum to 1
        np.testing.assert_allclose(score.sum(axis=1), text.query_heads / text.kv_heads, rtol=1e-5)
        assert not seen.scores[layer][0, :, 8:].any()
    before = to_host(found.device, *cache_.keys)
    slots = np.full((text.layers, 1, text.kv_heads), -1)
    slots[1, 0] = np.arange(text.kv_heads) + 2
    steps.overwrite(slots)
    assert cache_.length[:, 0].tolist() == [8, 7, 8]
    after = to_host(found.device, *cache_.keys)
    for head in range(text.kv_heads):
        np.testing.assert_array_equal(after[1][0, head, head + 2], before[1][0, head, 7])
        others = [slot for slot in range(7) if slot != head + 2]
        np.testing.assert_array_equal(after[1][0, head, others], before[1][0, head, others])
    np.testing.assert_array_equal(after[0][:, :, :8], before[0][:, :, :8])
    assert ops.allocate([0.5] * text.layers, 8, 0.5).sum() > 0
    steps.step(embeds[:, 2], np.array([8]), everyone)
    assert cache_.length[:, 0].tolist() == [9, 8, 9]


@pytest.mark.parametrize("backend", HOST[:1])
def test_limits_are_told(backend, opened):
    engine = opened(backend)
    with pytest.raises(
        PromptError, match=r"take 1.. cache slots, the engine was built for 128: .*--capacity"
    ):
        engine.generate("total " * 100, policy="full", max_new_tokens=80)
    with pytest.raises(PromptError, match=r"4 prompts at once, the engine was built for 3: .*--max-batch"):
        engine.generate_batch([Question("total", max_new_tokens=2)] * 4)


def test_onnxruntime_on_cuda_is_refused_in_one_line(built_of, graphs_of, tmp_path):
    with pytest.raises(EngineError, match="unknown device 'tpu'"):
        Engine.load(built_of("llama"), device="tpu")
    for operators in ("native", "functions"):
        with pytest.raises(
            EngineError, match=r"--device cuda needs an engine of 16 bits, .* --dtype float16"
        ):
            Engine.load(built_of("llama", operators), device="cuda")
    folder = tmp_path / "e"
    build_engine(graphs_of("llama"), folder, settings=Settings(dtype="float16"))
    try:
        compute_capability(())
    except EngineError:
        with pytest.raises(EngineError, match=r"this engine needs a GPU$"):
            Engine.load(folder, device="cuda")


@pytest.mark.parametrize("caches", ["dynamic", "static"])
def test_steps_are_replayed(caches, opened):
    """Plain steps go through the device's recorder. Dynamic caches alternate between two sets, each recorded once."""
    engine = opened(f"host-native-{caches}")
    device = engine.model.backend.device
    before = device.replayed
    result = engine.generate(QUESTION, policy="full", max_new_tokens=6)
    assert device.replayed - before == len(result.token_ids) - 1


def test_an_engine_without_a_gpu_is_one_line(builder, graphs_of, tmp_path):
    try:
        compute_capability(())
    except EngineError as error:
        assert "needs a GPU" in str(error)
    else:
        pytest.skip("this machine has a GPU")
    settings = Settings(("8.9",), capacity=32, chunk=16)
    build_engine(graphs_of("llama"), tmp_path / "e", builder, settings=settings)
    with pytest.raises(EngineError, match=r"this engine needs a GPU of compute capability 8\.9$"):
        Engine.load(tmp_path / "e")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["h2o", "streaming-llm", "elastic"])
def test_policies_that_evict_while_decoding(backend, policy, opened, pictures):
    """Whole answers with watched steps and overwritten slots."""
    settings = {"policy": policy, "budget": 0.5, "max_new_tokens": 12, "images": [str(pictures[1])]}
    want = opened("onnxruntime-native").generate(QUESTION, **settings)
    got = opened(backend).generate(QUESTION, **settings)
    assert got.token_ids == want.token_ids
    assert got.kept_tokens == want.kept_tokens


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", ["compressed", "reusable"])
def test_conversations(backend, keep, opened, pictures):
    answers = []
    for engine in (opened("onnxruntime-native"), opened(backend)):
        chat = engine.chat("vl-cache", 0.5, keep)
        first = chat.ask("what is the total", images=[str(pictures[0])], max_new_tokens=5)
        answers.append((first.token_ids, chat.ask("and the date", max_new_tokens=5).token_ids))
    assert answers[0] == answers[1]
