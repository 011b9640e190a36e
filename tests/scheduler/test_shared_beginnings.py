"""Reuse across requests: the same bits as without, less work, bounded memory, nothing between owners."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

import vlkv.inputs.pictures as pictures_module
from vlkv import POLICIES, Policy, Question
from vlkv.errors import MemoryLimitError
from vlkv.generation.chunks import GRAIN, LEAST, reusable
from vlkv.generation.sequence import prepare
from vlkv.policies.observe import observed_rows

WAIT = 120
WORDS = ("what", "is", "the", "total", "name", "date", "city", "form", "yes", "no")
REUSING = sorted(name for name, policy in POLICIES.items() if policy.rows not in ("all", "probe"))


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("llama-old")


def words(rng, count):
    return " ".join(rng.choice(WORDS, count))


def about(beginning, question, pictures, policy="vl-cache", **fields):
    given = {"max_new_tokens": 6, "scores": True, "logprobs": 3, "raw": True} | fields
    if "budget" not in given and policy != "full":
        given["budget"] = 0.3
    return Question(f"{beginning} {question}", pictures, policy=policy, **given)


def ask(scheduler, question, **fields):
    return scheduler.submit(question, **fields).wait(WAIT)


def bits(result):
    """Everything of a result that must not depend on reuse."""
    arrays = [*(result.positions or ()), *(result.scores or ())]
    said = (result.text, result.token_ids, result.kept_tokens, result.sparsity, result.logprobs)
    return said, [(array.dtype, array.shape, array.tobytes()) for array in arrays]


def runs(engine, monkeypatch):
    """The tokens of each call of the decoder, and the calls of the tower."""
    backend, tokens, tiles = engine.model.backend, [], []
    extend, vision = backend.extend, backend.vision

    def counted(embeds, *given):
        tokens.append(embeds.shape[1])
        return extend(embeds, *given)

    def seen(pixels, *given):
        tiles.append(len(pixels))
        return vision(pixels, *given)

    monkeypatch.setattr(backend, "extend", counted)
    monkeypatch.setattr(backend, "vision", seen)
    return tokens, tiles


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_bits_as_without(engine_of, pictures, rng, policy, weights):
    engine = engine_of("llama-old", "native", weights)
    count = int(rng.integers(280, 320))
    beginning = f"{words(rng, count)} <image> {words(rng, int(rng.integers(1, 40)))} <image>"
    lengths = [LEAST, 1, int(rng.integers(2, LEAST)), int(rng.integers(LEAST, 100)), 3]
    questions = [about(beginning, words(rng, count), pictures, policy) for count in lengths]
    with engine.scheduler(reuse=0) as scheduler:
        alone = [ask(scheduler, question) for question in questions]
        assert scheduler.stats().reuse_bytes == scheduler.stats().reuse_hits == 0
    with engine.scheduler(reuse=16 << 20) as scheduler:
        first = [ask(scheduler, question) for question in questions]
        again = [ask(scheduler, question) for question in questions]
        stats = scheduler.stats()
    for one, *others in zip(alone, first, again, strict=True):
        assert all(bits(other) == bits(one) for other in others)
        assert not one.cached_tokens
    if policy in REUSING:
        end = int(alone[0].image_positions[-1]) + 1
        for one in again:
            rows = observed_rows(POLICIES[policy], one.prompt_tokens, end - 1)
            origin = rows.start if rows else 0
            most = min(end, origin) if rows else end
            assert one.cached_tokens == reusable(one.prompt_tokens, origin, most) > end - 2 * GRAIN
        assert first[0].cached_tokens == 0
        assert stats.reuse_hits == 2 * len(questions) - 1
    else:
        assert not any(one.cached_tokens for one in again)
        assert stats.reuse_hits == 0
        assert stats.picture_hits == 2 * 2 * len(questions) - 2
    assert stats.picture_misses == 2
    assert stats.reused_tokens == sum(one.cached_tokens for one in (*first, *again))


def test_other_policies_share_what_one_left(engine, pictures, rng):
    beginning, question = f"{words(rng, 300)} <image>", words(rng, 40)
    asked = [about(beginning, question, pictures[:1], policy) for policy in REUSING]
    with engine.scheduler(reuse=0) as scheduler:
        alone = [ask(scheduler, one) for one in asked]
    with engine.scheduler(reuse=16 << 20) as scheduler:
        shared = [ask(scheduler, one) for one in asked]
        assert scheduler.stats().reuse_hits == len(asked) - 1
    assert [bits(one) for one in alone] == [bits(one) for one in shared]


def test_a_window_that_begins_before_the_pictures_end_runs_again(engine, pictures, rng):
    policy = Policy("wide", rows="last", window=70)
    asked = [about(f"{words(rng, 300)} <image>", words(rng, 40), pictures[:1], policy)] * 2
    with engine.scheduler(reuse=16 << 20) as scheduler:
        one, other = (ask(scheduler, question) for question in asked)
    least = other.prompt_tokens - 70
    assert least - GRAIN < other.cached_tokens <= least < one.image_positions[0]
    assert bits(one) == bits(other)


def test_only_the_rest_is_run(engine, pictures, rng, monkeypatch):
    tokens, tiles = runs(engine, monkeypatch)
    beginning = f"{words(rng, 350)} <image>"
    with engine.scheduler(reuse=16 << 20) as scheduler:
        ask(scheduler, about(beginning, words(rng, 50), pictures[:1]))
        assert len(tiles) == 1
        tokens.clear()
        found = ask(scheduler, about(beginning, words(rng, 45), pictures[:1]))
    assert len(tiles) == 1, "the tower ran again"
    assert sum(tokens) == found.prompt_tokens - found.cached_tokens < 45 + GRAIN


def test_a_conversation_with_a_new_picture_reuses_the_earlier_turns(engine, pictures, rng):
    beginning = f"{words(rng, 330)} <image>"
    longer = f"{beginning} {words(rng, 30)} <image>"
    asked = about(longer, words(rng, 40), pictures)
    with engine.scheduler(reuse=0) as scheduler:
        alone = ask(scheduler, asked)
    with engine.scheduler(reuse=16 << 20) as scheduler:
        before = ask(scheduler, about(beginning, words(rng, 40), pictures[:1]))
        found = ask(scheduler, asked)
        again = ask(scheduler, asked)
    assert 0 <= before.image_positions[-1] + 1 - found.cached_tokens < 3
    assert 0 <= found.image_positions[-1] + 1 - again.cached_tokens < 2 * GRAIN
    assert bits(alone) == bits(found) == bits(again)


def test_other_beginnings_pictures_and_owners_miss(engine, pictures, rng):
    beginning, question = words(rng, 330), words(rng, 40)
    one, two = pictures
    asked = about(f"{beginning} <image>", question, [one])
    with engine.scheduler(reuse=16 << 20) as scheduler:
        base = ask(scheduler, asked)
        for other in (
            about(f"{beginning} <image>", question, [two]),
            about(f"yes {beginning} <image>", question, [one]),
        ):
            assert ask(scheduler, other).cached_tokens == 0
        assert scheduler.stats().picture_misses == 2
        found = ask(scheduler, asked, owner="somebody")
        assert found.cached_tokens == 0
        assert scheduler.stats().picture_misses == 3, "features were shared between owners"
        assert ask(scheduler, asked, owner="somebody").cached_tokens > 0
        assert ask(scheduler, asked, owner="nobody").cached_tokens == 0
        assert bits(found) == bits(base)


def test_without_pictures_nothing_is_held(engine, rng):
    with engine.scheduler(reuse=16 << 20) as scheduler:
        for _ in range(2):
            assert ask(scheduler, about(words(rng, 330), "what", [])).cached_tokens == 0
        stats = scheduler.stats()
    assert (stats.reuse_hits, stats.reuse_misses, stats.reuse_bytes) == (0, 0, 0)


def test_operators_that_depend_on_chunks_reuse_features_only(engine_of, pictures, rng):
    engine = engine_of("llama-old", "functions")
    asked = about(f"{words(rng, 330)} <image>", words(rng, 40), pictures[:1])
    with engine.scheduler(reuse=16 << 20) as scheduler:
        one, other = ask(scheduler, asked), ask(scheduler, asked)
        stats = scheduler.stats()
    assert bits(one) == bits(other)
    assert (stats.reuse_hits, stats.picture_hits, other.cached_tokens) == (0, 1, 0)


def test_memory_is_bounded_counted_and_given_back(engine, pictures, rng):
    """Requests take what they need from what is kept, and closing frees all of it."""
    with engine.scheduler(slots=2, reuse=1 << 40) as scheduler:
        assert scheduler.stats().reuse_bytes_limit == scheduler.plan.memory
        for _ in range(3):
            ask(scheduler, about(f"{words(rng, 330)} <image>", words(rng, 40), pictures[:1]))
        assert scheduler.stats().reuse_bytes > 0
    assert scheduler.stats().reuse_bytes == 0
    text = engine.manifest.text
    token = text.layers * text.kv_heads * text.head_dim * 8
    limit = 360 * token
    with engine.scheduler(slots=2, reuse=limit) as scheduler:
        for _ in range(6):
            ask(scheduler, about(f"{words(rng, 330)} <image>", words(rng, 40), pictures[:1]))
            assert 0 < scheduler.stats().reuse_bytes <= limit
        large = about(f"{words(rng, 370)} <image>", words(rng, 40), pictures[:1])
        assert [ask(scheduler, large).cached_tokens for _ in range(2)] == [0, 0]


def test_requests_that_need_the_memory_get_it(engine, pictures, rng):
    small = about(f"{words(rng, 300)} <image>", words(rng, 40), pictures[:1], max_new_tokens=1)
    large = about(words(rng, 480), "what", [], max_new_tokens=1)
    with engine.scheduler(slots=1) as scheduler:
        plan = scheduler.plan
    needed = [
        plan.lane_bytes(one) + plan.prefill_bytes(one)
        for one in (prepare(engine.model, question) for question in (small, large))
    ]
    memory = needed[0] + 345 * plan.token_bytes * len(plan.capacity)
    assert needed[1] <= memory
    with engine.scheduler(slots=1, memory=memory, reuse=memory) as scheduler:
        ask(scheduler, small)
        held = scheduler.stats().reuse_bytes
        assert ask(scheduler, small).cached_tokens > 0
        ask(scheduler, large)
        assert held > 0 == scheduler.stats().reuse_bytes
        assert ask(scheduler, small).cached_tokens == 0


def test_many_at_once_from_many_threads(engine, pictures, rng):
    beginnings = [f"{words(rng, 330)} <image>" for _ in range(3)]
    asked = [
        about(
            str(rng.choice(beginnings)),
            words(rng, int(rng.integers(1, 80))),
            [pictures[int(rng.integers(2))]],
            str(rng.choice(sorted(POLICIES))),
        )
        for _ in range(32)
    ]
    with engine.scheduler(reuse=0) as scheduler:
        alone = [ask(scheduler, question) for question in asked]
    token = engine.manifest.text.layers * engine.manifest.text.kv_heads * engine.manifest.text.head_dim * 8
    found = [None] * len(asked)
    with engine.scheduler(slots=5, reuse=1200 * token) as scheduler:

        def some(first):
            for number in range(first, len(asked), 4):
                found[number] = ask(scheduler, asked[number])

        threads = [threading.Thread(target=some, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        stats = scheduler.stats()
    assert [bits(one) for one in alone] == [bits(one) for one in found]
    assert stats.reuse_hits > 0
    looked = [question for question in asked if POLICIES[question.policy].rows != "probe"]
    assert stats.reuse_hits + stats.reuse_misses == len(looked)


def test_cancelled_prompts_leave_nothing_half_done(engine, pictures, rng, monkeypatch):
    backend, gate, begun = engine.model.backend, threading.Event(), threading.Event()
    extend = backend.extend

    def held(*given):
        begun.set()
        assert gate.wait(WAIT)
        return extend(*given)

    asked = about(f"{words(rng, 300)} <image>", words(rng, 60), pictures[:1])
    monkeypatch.setattr(backend, "extend", held)
    with engine.scheduler(reuse=16 << 20, chunk=64) as scheduler:
        ticket = scheduler.submit(asked)
        assert begun.wait(WAIT)
        ticket.cancel()
        gate.set()
        ticket.wait(WAIT)
        assert ask(scheduler, asked).cached_tokens == 0
        again = ask(scheduler, asked)
        assert again.cached_tokens > 0
        assert np.isfinite(again.scores[0]).all()


def decoded(monkeypatch):
    """A list that gets the number of each picture that is decoded."""
    seen, read = [], pictures_module.open_image
    monkeypatch.setattr(
        pictures_module, "open_image", lambda source, **given: seen.append(source) or read(source, **given)
    )
    return seen


def as_png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("given", ["bytes", "pixels"])
def test_a_known_picture_is_not_decoded(engine, pictures, rng, monkeypatch, given):
    noise = Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8))
    source = as_png(noise) if given == "bytes" else noise
    beginning = f"{words(rng, 300)} <image> {words(rng, 20)}"
    asked = [about(beginning, words(rng, 30), [source], policy) for policy in ("vl-cache", "h2o", "full")]
    with engine.scheduler(reuse=0) as scheduler:
        alone = [bits(ask(scheduler, question)) for question in asked]
    seen = decoded(monkeypatch)
    with engine.scheduler(reuse=16 << 20) as scheduler:
        assert [bits(ask(scheduler, question)) for question in asked] == alone
        assert len(seen) == 1
        ask(scheduler, asked[0], owner="somebody")
        assert len(seen) == 2, "what one owner gave was known to another"
        ask(scheduler, about(f"{beginning} <image>", "what", [source, pictures[0]]))
        assert len(seen) == 3, "the other picture of two"
        ask(scheduler, about(beginning, "what", [source], prune="diverse:0.5"))
        assert len(seen) == 4, "pruning looks at the pixels"
        assert scheduler.stats().pixel_bytes == 0


def test_a_picture_that_changed_is_decoded_again(engine, rng, monkeypatch):
    pixels = rng.integers(0, 256, (50, 70, 3), np.uint8)
    beginning = f"{words(rng, 300)} <image>"
    seen = decoded(monkeypatch)
    with engine.scheduler(reuse=16 << 20) as scheduler:
        image = Image.fromarray(pixels)
        first = ask(scheduler, about(beginning, "what", [image]))
        image.paste((255, 0, 0), (0, 0, 50, 40))
        other = ask(scheduler, about(beginning, "what", [image]))
        assert (len(seen), other.cached_tokens < first.prompt_tokens - 100) == (2, True)
        alone = ask(scheduler, about(beginning, "what", [image]), owner="alone")
        assert bits(other) == bits(alone) != bits(first)


def test_features_stay_with_a_request_although_they_go_from_the_store(engine, rng, monkeypatch):
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8))
    asked = about(f"{words(rng, 300)} <image>", "what", [image])
    _, tiles = runs(engine, monkeypatch)
    with engine.scheduler(reuse=16 << 20) as scheduler:
        first = ask(scheduler, asked)
        reuse, peek = scheduler._worker.reuse, scheduler._worker.reuse.peek

        def lost(name):
            found = peek(name)
            reuse.clear()
            return found

        monkeypatch.setattr(reuse, "peek", lost)
        assert bits(ask(scheduler, asked)) == bits(first)
        assert len(tiles) == 1, "the tower ran again"


def test_features_that_find_no_room_give_way_to_pixels(engine, rng, monkeypatch):
    asked = about(f"{words(rng, 300)} <image>", "what", [Image.new("RGB", (40, 40), "red")])
    seen = decoded(monkeypatch)
    with engine.scheduler(reuse=16 << 20) as scheduler:
        first = ask(scheduler, asked)
        hold = scheduler._pixels.hold
        wanted = []

        def tight(size):
            wanted.append(size)
            if len(wanted) == 1:
                raise MemoryLimitError("features")
            return hold(size)

        monkeypatch.setattr(scheduler._pixels, "hold", tight)
        assert bits(ask(scheduler, asked)) == bits(first)
        assert (len(seen), len(wanted)) == (2, 2)
        assert scheduler.stats().refused == 0
