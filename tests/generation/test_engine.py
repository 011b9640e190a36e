"""`Engine`: streaming, stopping, sampling and errors, all on the tiny checkpoint `llama-old`."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest
from PIL import Image

import vlkv
from vlkv import Engine, Question
from vlkv.errors import EngineError, ImageError, PolicyError, PromptError, SamplingError
from vlkv.generation.sequence import prepare
from vlkv.policies.builtin import DEFAULT_POLICY, POLICIES
from vlkv.policies.policy import Policy

PROMPT = "what is the total"
TOKENS = 24


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-old")


@pytest.fixture(scope="module")
def answer(engine, pictures):
    """Returns a greedy answer that no end token cuts."""
    result = engine.generate(PROMPT, pictures[:1], max_new_tokens=TOKENS)
    assert len(result.token_ids) == TOKENS
    return result


def comparable(result):
    values = result.to_dict()
    del values["seconds"], values["tokens_per_second"]
    return values


@pytest.mark.parametrize("fields", [{}, {"policy": "full"}, {"temperature": 1.0, "seed": 3}], ids=str)
def test_stream_equals_generate(engine, pictures, fields):
    stream = engine.stream(PROMPT, pictures[:1], max_new_tokens=TOKENS, **fields)
    pieces = list(stream)
    whole = engine.generate(PROMPT, pictures[:1], max_new_tokens=TOKENS, **fields)
    assert "".join(pieces) == stream.result.text == whole.text
    assert len(pieces) > TOKENS // 2
    assert all(pieces)
    assert comparable(stream.result) == comparable(whole)


def test_stream_gives_text_before_the_answer_is_done(engine, pictures):
    stream = engine.stream(PROMPT, pictures[:1], max_new_tokens=TOKENS)
    pieces = iter(stream)
    first = next(pieces)
    assert stream.result.text == first
    assert len(stream.result.token_ids) < TOKENS
    assert stream.result.finish_reason == ""


def test_progress_of_the_prompt(engine, pictures):
    seen = []
    stream = engine.stream(
        PROMPT, pictures[:1], max_new_tokens=1, progress=lambda done, total: seen.append((done, total))
    )
    list(stream)
    assert seen == [(stream.result.prompt_tokens,) * 2]


def test_result_tells_what_was_done(engine, pictures):
    result = engine.generate(PROMPT, pictures, budget=0.25, max_new_tokens=5)
    text, image = engine.manifest.text, engine.manifest.image
    assert result.image_tokens == 2 * image.tile_features
    assert result.prompt_tokens == len(engine.prompt(Question(PROMPT, pictures)).token_ids)
    assert (result.policy, result.budget) == (DEFAULT_POLICY, 0.25)
    assert len(result.kept_tokens) == len(result.sparsity) == text.layers
    assert sum(result.kept_tokens) == round(0.25 * text.layers * result.prompt_tokens)
    slot = 2 * text.kv_heads * text.head_dim * 4
    assert result.cache_bytes == slot * (sum(result.kept_tokens) + 5 * text.layers)
    assert result.cache_bytes_full == slot * text.layers * (result.prompt_tokens + 5)
    spent = result.seconds
    assert min(spent.vision, spent.prefill, spent.compress, spent.decode) > 0
    assert result.tokens_per_second == pytest.approx(4 / spent.decode)
    assert list(result.to_dict()) == [
        "text",
        "token_ids",
        "finish_reason",
        "prompt_tokens",
        "image_tokens",
        "pruned_tokens",
        "cached_tokens",
        "policy",
        "budget",
        "kept_tokens",
        "sparsity",
        "cache_bytes",
        "recall_bytes",
        "recall_bytes_read",
        "cache_bytes_full",
        "seconds",
        "tokens_per_second",
    ]
    assert msgspec.json.decode(msgspec.json.encode(result.to_dict())) == result.to_dict()


def test_full_observes_nothing(engine, pictures):
    result = engine.generate(PROMPT, pictures, policy="full", max_new_tokens=3)
    assert (result.budget, result.positions) == (1.0, None)
    assert result.kept_tokens == [result.prompt_tokens] * 3
    assert result.sparsity == [0.0] * 3
    assert result.cache_bytes == result.cache_bytes_full


def test_a_policy_may_be_given_as_data(engine, pictures):
    mine = Policy("mine", rows="all", allocation="equal", sinks=2, recent=0.5, per_head=False)
    result = engine.generate(PROMPT, pictures, policy=mine, budget=0.4, max_new_tokens=2)
    assert result.policy == "mine"
    assert max(result.kept_tokens) - min(result.kept_tokens) <= 1
    for kept, count in zip(result.positions, result.kept_tokens, strict=True):
        assert (kept == kept[0]).all()
        assert kept[0, :2].tolist() == [0, 1]
        last = round(0.5 * count)
        assert kept[0, -last:].tolist() == list(range(result.prompt_tokens - last, result.prompt_tokens))


def test_native_and_functions_agree_on_merging(engine_of, pictures):
    mine = Policy("mine", rows="all", sinks=1, recent=0.1, per_head=False, merge="nearest_mean")
    asked = {"policy": mine, "budget": 0.3, "max_new_tokens": TOKENS}
    first, second = (
        engine_of("llama-old", operators).generate(PROMPT, pictures, **asked)
        for operators in ("native", "functions")
    )
    plain = engine_of("llama-old").generate(
        PROMPT, pictures, **asked | {"policy": Policy("b", rows="all", sinks=1, recent=0.1, per_head=False)}
    )
    assert first.token_ids == second.token_ids != plain.token_ids
    for mine, theirs in zip(first.positions, second.positions, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_same_seed_same_answer(engine, pictures):
    def sampled(seed):
        return engine.generate(
            PROMPT, pictures[:1], temperature=2.0, top_k=40, top_p=0.95, seed=seed, max_new_tokens=TOKENS
        ).token_ids

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(seed)) for seed in range(4)}) == 4


def test_top_k_of_one_is_greedy(engine, pictures, answer):
    sampled = engine.generate(PROMPT, pictures[:1], temperature=5.0, top_k=1, seed=0, max_new_tokens=TOKENS)
    assert sampled.token_ids == answer.token_ids


def test_stop_text_ends_the_answer_before_itself(engine, pictures, answer):
    words = answer.text.split(" ")
    stop = " ".join(words[5:7])
    result = engine.generate(PROMPT, pictures[:1], stop=[stop, "never said"], max_new_tokens=TOKENS)
    assert result.finish_reason == "stop"
    assert result.text == answer.text[: answer.text.index(stop)]
    assert result.token_ids == answer.token_ids[: len(result.token_ids)]
    assert len(result.token_ids) < TOKENS
    assert result.text == engine.generate(PROMPT, pictures[:1], stop=stop, max_new_tokens=TOKENS).text
    stream = engine.stream(PROMPT, pictures[:1], stop=[stop], max_new_tokens=TOKENS)
    assert "".join(stream) == result.text


def test_a_special_tokens_text_as_stop_ends_the_answer_at_the_token(engine):
    for stop, reason in (("<pad>", "stop"), ("<unk>", "")):
        sequence = prepare(engine.model, Question(PROMPT, stop=stop))
        sequence.begin(engine.model)
        assert sequence.take(np.eye(1, 512, 3, dtype=np.float32)[0]) == ""
        assert sequence.result.finish_reason == reason


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_max_new_tokens(engine, pictures, answer, tokens):
    result = engine.generate(PROMPT, pictures[:1], max_new_tokens=tokens)
    assert result.token_ids == answer.token_ids[:tokens]
    assert result.finish_reason == "length"
    assert (result.seconds.decode > 0) == (tokens > 1)


def changed(folder, source, **facts):
    """Returns the same engine with other facts in its manifest."""
    shutil.copytree(source, folder)
    path = folder / "manifest.json"
    values = msgspec.json.decode(path.read_bytes())
    for name, value in facts.items():
        values[name] |= value
    path.write_bytes(msgspec.json.encode(values))
    return Engine.load(folder, threads=1)


def test_end_token_ends_the_answer_without_text(built_of, pictures, answer, tmp_path):
    at = next(n for n in range(3, TOKENS) if answer.token_ids[n] not in answer.token_ids[:n])
    ends = changed(tmp_path / "engine", built_of("llama-old"), tokens={"eos": [2, answer.token_ids[at]]})
    result = ends.generate(PROMPT, pictures[:1], max_new_tokens=TOKENS)
    assert result.token_ids == answer.token_ids[: at + 1]
    assert result.finish_reason == "stop"
    assert result.text == ends.decode(answer.token_ids[:at])


def test_answer_ends_with_the_positions(built_of, pictures, answer, tmp_path):
    length = answer.prompt_tokens
    short = changed(tmp_path / "short", built_of("llama-old"), text={"max_positions": length + 3})
    result = short.generate(PROMPT, pictures[:1], max_new_tokens=TOKENS)
    assert result.token_ids == answer.token_ids[:3]
    assert result.finish_reason == "length"
    filled = changed(tmp_path / "filled", built_of("llama-old"), text={"max_positions": length})
    with pytest.raises(PromptError, match=f"{length} tokens fill all {length} positions"):
        filled.generate(PROMPT, pictures[:1])


def test_prompt_beyond_the_positions(engine):
    positions = engine.manifest.text.max_positions
    with pytest.raises(PromptError, match=rf"has \d+ tokens.*model has {positions} positions"):
        engine.generate("w0 " * positions)


@pytest.mark.parametrize(
    ("error", "match", "fields"),
    [
        (PolicyError, r"budget 0 is outside \(0, 1\]", {"budget": 0}),
        (PolicyError, "outside", {"budget": -1.0}),
        (PolicyError, "outside", {"budget": 1.0001}),
        (PolicyError, "outside", {"budget": float("nan")}),
        (PolicyError, "outside", {"budget": True}),
        (PolicyError, "does not fit policy 'full'", {"policy": "full", "budget": 0.5}),
        (PolicyError, "unknown policy 'lru'; known: full, vl-cache, elastic", {"policy": "lru"}),
        (SamplingError, "temperature", {"temperature": -1.0}),
        (SamplingError, "top_k", {"top_k": -1}),
        (SamplingError, "top_p", {"top_p": 0.0}),
        (SamplingError, "seed", {"seed": -1}),
        (SamplingError, "max_new_tokens", {"max_new_tokens": 0}),
        (SamplingError, "stop", {"stop": [""]}),
        (PromptError, "empty", {"prompt": " \n"}),
        (PromptError, "prompt has 2 <image> for 1 given picture", {"prompt": "<image> a <image>"}),
        (ImageError, "no such file", {"images": ["no-such-picture.png"]}),
        (ImageError, "not a picture", {"images": [b"text"]}),
        (ImageError, "wanted", {"images": [3]}),
    ],
    ids=str,
)
def test_bad_questions(engine, pictures, error, match, fields):
    asked = {"prompt": PROMPT, "images": pictures[:1], **fields}
    with pytest.raises(error, match=match) as caught:
        engine.generate(**asked)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, vlkv.VlkvError)


def test_a_bad_question_leaves_the_engine_usable(engine, pictures, answer):
    good = Question(PROMPT, pictures[:1], max_new_tokens=TOKENS)
    with pytest.raises(PolicyError):
        engine.generate_batch([good, Question(PROMPT, policy="lru")])
    assert engine.generate_batch([good])[0].token_ids == answer.token_ids


def test_pictures_as_paths_bytes_and_images(engine, pictures, answer):
    with Image.open(pictures[0]) as image:
        image.load()
    for source in (str(pictures[0]), pictures[0].read_bytes(), image):
        assert engine.generate(PROMPT, [source], max_new_tokens=TOKENS).token_ids == answer.token_ids


def test_placeholders_say_where_pictures_go(engine, pictures):
    middle = engine.prompt(Question("what <image> is", pictures[:1])).token_ids.tolist()
    first = engine.prompt(Question("what is", pictures[:1])).token_ids.tolist()
    token = engine.manifest.image.token_id
    assert middle.count(token) == first.count(token) == engine.manifest.image.tile_features
    assert middle.index(token) > first.index(token)


def test_raw_leaves_the_template_out(engine):
    plain = engine.prompt(Question("what is", raw=True)).token_ids
    assert len(plain) < len(engine.prompt(Question("what is")).token_ids)


def test_public_names():
    assert set(vlkv.POLICIES) == set(POLICIES) == {
        "full", "vl-cache", "elastic", "h2o", "snapkv", "pyramidkv", "streaming-llm", "shared-question",
        "tgv-kv", "mixkv", "picture-once", "recall-question",
    }  # fmt: skip
    for name in vlkv.__all__:
        assert getattr(vlkv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vlkv.nothing


def test_engine_of_another_backend(built_of, tmp_path):
    shutil.copytree(built_of("llama-old"), tmp_path / "engine")
    path = tmp_path / "engine" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"backend": "onnxruntime"', b'"backend": "tensorrt"'))
    with pytest.raises(EngineError, match="backend 'tensorrt' and device do not go together"):
        Engine.load(tmp_path / "engine")


def test_a_changed_weight_is_found_unless_hashes_are_left_out(built_of, tmp_path):
    shutil.copytree(built_of("llama-old"), tmp_path / "engine")
    weights = next((tmp_path / "engine").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(EngineError, match="is changed"):
        Engine.load(tmp_path / "engine")
    Engine.load(tmp_path / "engine", verify=False)


def test_a_damaged_graph_is_one_line(built_of, tmp_path):
    shutil.copytree(built_of("llama-old"), tmp_path / "engine")
    graph = tmp_path / "engine" / "decoder.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(EngineError, match=r"decoder\.onnx can't be opened by ONNX Runtime") as caught:
        Engine.load(tmp_path / "engine", verify=False)
    assert "\n" not in str(caught.value)
