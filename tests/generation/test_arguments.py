"""Arguments as a user gives them either work as expected or give one line that says what is wanted."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlkv import Engine, Question
from vlkv.errors import LONGEST, EngineError, ImageError, PolicyError, PromptError, VlkvError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.policies.builtin import POLICIES
from vlkv.policies.decode_eviction import LEAST_HELD
from vlkv.policies.policy import LEAST_TEXT, LEAST_TOKENS, default_budget

PROMPT = "what is the total"


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama")


def test_one_picture_alone_is_a_picture(engine, pictures):
    want = engine.generate(PROMPT, [pictures[0]], max_new_tokens=3).token_ids
    data = pictures[0].read_bytes()
    for given in (str(pictures[0]), pictures[0], data, bytearray(data), Image.open(pictures[0]),
                  (pictures[0],), iter([pictures[0]])):  # fmt: skip
        assert engine.generate(PROMPT, given, max_new_tokens=3).token_ids == want
    assert Question(PROMPT, None).images == ()


def test_wrong_kinds_are_one_line(built_of):
    with pytest.raises(PromptError, match="the prompt is a NoneType; a text is wanted"):
        Question(None)
    with pytest.raises(PromptError, match="the prompt is a bytes"):
        Question(b"what")
    with pytest.raises(ImageError, match="images is a int"):
        Question(PROMPT, 5)
    for array in (np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9)), {"a": 1}):
        with pytest.raises(
            ImageError, match=f"images is a {type(array).__name__}; a list of .*fromarray makes"
        ):
            Question(PROMPT, array)
    for folder in (None, 5, b"engine", [built_of("llama")]):
        with pytest.raises(EngineError, match="is no path of an engine directory"):
            Engine.load(folder)
    for threads in (-1, 1.5, True, 10**6):
        with pytest.raises(EngineError, match=r"threads .* is not a whole number from 0"):
            Engine.load(built_of("llama"), threads=threads)


def test_what_is_no_question_is_one_line(engine):
    with pytest.raises(PromptError, match="5 is no list of questions"):
        engine.generate_batch(5)
    with pytest.raises(PromptError, match="is no list of questions"):
        engine.generate_batch(Question(PROMPT))
    with engine.scheduler(slots=1) as scheduler:
        for wrong in ("what", None, {"prompt": "what"}):
            with pytest.raises(PromptError, match="is not a Question"):
                engine.generate_batch([wrong])
            with pytest.raises(PromptError, match="is not a Question"):
                scheduler.submit(wrong)
        for deadline in (float("inf"), 10**400, np.float32(30)):
            ticket = scheduler.submit(Question(PROMPT, max_new_tokens=2), deadline=deadline)
            assert ticket.wait(float("inf")).token_ids


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint64])
def test_small_whole_numbers_of_numpy_do_not_overflow(engine, kind):
    """A prompt of 100 tokens and the answer's are more than 127."""
    long = "what " * 100
    asked = {"max_new_tokens": kind(100), "top_k": kind(5), "min_new_tokens": kind(90), "temperature": 1.0}
    asked |= {"seed": kind(3), "no_repeat_ngram_size": kind(0), "suppress_tokens": [kind(7)]}
    plain = {"max_new_tokens": 100, "top_k": 5, "min_new_tokens": 90, "temperature": 1.0}
    plain |= {"seed": 3, "no_repeat_ngram_size": 0, "suppress_tokens": [7]}
    assert engine.generate(long, **asked).token_ids == engine.generate(long, **plain).token_ids


HUGE, NONE, TWO = 10**400, np.array(0.5), np.array([1, 2])


@pytest.mark.parametrize(
    "name, values",
    {
        "images": [NONE, io.BytesIO(b"a"), "a" * 10**6, ["x"] * 1000],
        "policy": [None, [], {}, set(), NONE, b"full", HUGE, "a" * 10**6, ["full"]],
        "budget": ["0.1", "a" * 10**6, TWO, True, HUGE, -HUGE, float("nan"), 1j, ["x"] * 1000],
        "temperature": [HUGE, -HUGE, True, float("nan"), float("inf"), "1", 1j],
        "top_p": [HUGE, True, "1", NONE],
        "stop": ["\ud800", ["a\udcff"], [""], [b"a"], {"a"}, NONE],
        "no_repeat_ngram_size": ["", b"", [], {}, (), TWO, np.array([]), HUGE, True],
        "min_new_tokens": ["", b"", [], {}, (), TWO, np.array([]), HUGE, True],
        "max_new_tokens": ["", 0.5, [], TWO, True, -HUGE],
        "messages": [5, None, "a", b"a", ["a"], [None], {"a": 1}, {1, 2}, range(3), TWO, iter("a")],
        "raw": [TWO, "yes", 1, None],
        "scores": [TWO, "yes", 1, None],
        "frames": ["a" * 10**6, TWO, True, HUGE - HUGE],
        "prune": ["a" * 10**6, [], 5],
        "logit_bias": [{1: float("nan")}, {1: HUGE}, {-1: 0.0}, {"1": 0.0}, [1], NONE],
    }.items(),
)
def test_values_of_a_wrong_kind_are_one_short_line(engine, name, values):
    """None is a traceback, and none fails after it was accepted: the scheduler's thread never sees them."""
    with engine.scheduler(slots=2, memory=32 << 20) as scheduler:
        for value in values:
            given = {"prompt": PROMPT, "max_new_tokens": 2, name: value}
            for ask in (engine.generate, lambda **given: scheduler.submit(Question(**given))):
                with pytest.raises(VlkvError) as caught:
                    ask(**given)
                assert "\n" not in str(caught.value) and len(str(caught.value)) <= LONGEST + 5
                str(caught.value).encode()
        assert scheduler.stats().submitted == scheduler.stats().failed == 0


def test_a_long_text_of_an_error_loses_its_middle():
    text = str(PolicyError(f"unknown policy {'a' * 10**6}; known: full"))
    assert text.startswith("unknown policy aaa") and text.endswith("aaa; known: full") and " ... " in text


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_numpy_scalars_are_numbers(engine, kind):
    found = engine.generate(PROMPT, budget=kind(0.5), temperature=kind(0), max_new_tokens=np.int64(2))
    assert found.budget == 0.5
    assert engine.generate(PROMPT, budget=np.int64(1), max_new_tokens=1).budget == 1


def test_a_token_beyond_the_embedding_is_one_line(engine, built_of):
    table = TokenEmbedding(built_of("llama"), engine.manifest.embedding)
    size = engine.manifest.text.vocab
    assert table.rows(np.array([], np.int64)).shape[0] == 0
    assert table.rows(np.array([0, size - 1])).shape[0] == 2
    for wrong in (size, -1):
        with pytest.raises(EngineError, match=f"token {wrong} has no embedding, the table has {size}"):
            table.rows(np.array([0, wrong]))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_short_prompt_stays_whole_where_no_budget_is_given(engine, policy):
    found = engine.generate(PROMPT, policy=policy, max_new_tokens=2)
    assert found.prompt_tokens < LEAST_TOKENS
    assert found.kept_tokens == [found.prompt_tokens] * engine.manifest.text.layers
    assert found.budget == 1
    if policy != "full":
        assert max(engine.generate(PROMPT, policy=policy, budget=0.1).kept_tokens) < 9


def test_the_default_budget():
    policy = POLICIES["vl-cache"]
    lengths = (0, 1, 64, 65, 128, 640, 641, 100_000)
    assert [round(default_budget(policy, n) * n) for n in lengths] == [0, 1, 64, 64, 64, 64, 64, 10_000]
    kept = [round(default_budget(policy, n, text_only=True) * n) for n in (*lengths, 257, 2560, 2570)]
    assert kept == [0, 1, 64, 65, 128, 256, 256, 10_000, 256, 256, 257]
    assert default_budget(POLICIES["full"], 5000) == 1
    assert default_budget(POLICIES["elastic"], 5000) == 0.1
    assert default_budget(POLICIES["elastic"], 5000, text_only=True) == 1


TEXTS = (20, 37, 64, 65, 100, 200, 256, 257, 300)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_default_takes_the_words_of_a_text(engine_of, policy):
    """Prompts of a text alone, of many lengths: what stays after prefill, and what stays while the answer grows."""
    engine = engine_of("llama-old")
    text, new = engine.manifest.text, 40
    slot = 2 * text.kv_heads * text.head_dim * 4
    for length in TEXTS:
        prompt = " ".join(["what", "is", "the", "total"][number % 4] for number in range(length))
        kept = engine.generate(prompt, raw=True, policy=policy, max_new_tokens=new, min_new_tokens=new)
        assert kept.prompt_tokens >= length * 0.9
        least = min(kept.prompt_tokens, LEAST_TEXT)
        whole = POLICIES[policy].keeps_all or POLICIES[policy].merge != "none"
        assert sum(kept.kept_tokens) >= text.layers * (kept.prompt_tokens if whole else least)
        assert kept.cache_bytes >= slot * text.layers * least, "decoding holds as many"
        if kept.prompt_tokens + new <= LEAST_TEXT:
            full = engine.generate(prompt, raw=True, policy="full", max_new_tokens=new, min_new_tokens=new)
            assert kept.token_ids == full.token_ids
        with_budget = engine.generate(
            prompt, raw=True, policy=policy, max_new_tokens=1, budget=1.0 if policy == "full" else 0.1
        )
        if policy != "full":
            assert sum(with_budget.kept_tokens) < sum(kept.kept_tokens), "a given budget is what it says"


def test_a_later_turn_of_a_compressed_chat_has_the_budget_that_the_first_began_with(engine_of):
    """Eviction while decoding continues under that budget, so the cache needs the slots for it."""
    chat = engine_of("llama-old").chat("elastic")
    first = chat.ask("what", raw=True, max_new_tokens=2)
    later = chat.ask(
        "is the total of the form and the date " * 12, raw=True, max_new_tokens=24, temperature=2.0
    )
    assert later.prompt_tokens > LEAST_TOKENS > first.prompt_tokens
    assert first.budget == later.budget == 1.0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_short_prompt_is_not_overwritten_by_its_answer(engine, policy):
    found, full = (engine.generate(PROMPT, policy=name, max_new_tokens=60) for name in (policy, "full"))
    assert found.token_ids == full.token_ids
    text = engine.manifest.text
    slot = 2 * text.layers * text.kv_heads * text.head_dim * 4
    assert found.cache_bytes <= slot * (found.prompt_tokens + 60)


@pytest.mark.parametrize("policy", ["h2o", "streaming-llm"])
def test_what_decoding_holds_is_bounded(engine, policy):
    tokens = LEAST_HELD + 40
    found = next(iter([engine.generate(PROMPT, policy=policy, max_new_tokens=tokens, min_new_tokens=tokens)]))
    text = engine.manifest.text
    slot = 2 * text.layers * text.kv_heads * text.head_dim * 4
    assert len(found.token_ids) == tokens
    assert found.cache_bytes == slot * (LEAST_HELD + 1)
