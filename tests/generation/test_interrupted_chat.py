"""A chat that is interrupted anywhere goes on as one that stopped at the last whole token, or before the turn."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import numpy as np
import pytest

from vlkv.errors import PromptError

FIRST = "what is the total name date city of form w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
SECOND = "what is the name w10 w11 w12 w13"
THIRD = "date w14 w15"
NEW = 7
LAST = 5
POLICIES = ["full", "vl-cache", "snapkv", "elastic", "h2o", "streaming-llm"]
ROOMS = tuple(f"/vlkv/{room}/" for room in ("generation", "policies", "backend"))
POINTS = 40
"""Lines of a turn at which it is interrupted, of each policy."""


class InjectedError(Exception):
    """What no part of the program expects."""


@contextmanager
def interrupted(at: int, error: type[BaseException]):
    """Raises at a line of generation, policies or backend; `found[0]` is how many lines ran."""
    found, here, before = [0], sys._getframe(), sys.gettrace()

    def local(frame, event, _):
        if event == "line":
            found[0] += 1
            if found[0] == at:
                raise error
        return local

    def trace(frame, event, _):
        inside = any(room in frame.f_code.co_filename for room in ROOMS)
        return local if inside and frame is not here else None

    sys.settrace(trace)
    try:
        yield found
    except error:
        pass
    finally:
        sys.settrace(before)


@pytest.fixture(scope="module")
def engine(engine_of):
    """An engine whose prompts are read in many chunks."""
    with pytest.MonkeyPatch.context() as patch:
        for room in ("chat", "prefill"):
            patch.setattr(f"vlkv.generation.{room}.PREFILL_CHUNK", 16)
        yield engine_of("llama-gqa-tied")


def started(engine, pictures, name, keep, new=NEW):
    chat = engine.chat(name, 1.0 if name == "full" else 0.3, keep=keep)
    chat.ask(FIRST, pictures[:1], max_new_tokens=new)
    return chat


def go_on(chat):
    """What is said after the interrupted turn, twice."""
    answers = [chat.ask(text, max_new_tokens=LAST) for text in (THIRD, FIRST)]
    return [answer.token_ids for answer in answers], chat.token_ids.tolist(), chat.turns


@pytest.fixture(scope="module")
def stopped(engine, pictures):
    """A chat whose second turn was stopped after some tokens; None for a turn that never was."""
    known = {}

    def find(name, keep, tokens):
        key = (name, keep, tokens)
        if key not in known:
            chat = started(engine, pictures, name, keep)
            if tokens:
                stream = chat.stream(SECOND, max_new_tokens=NEW)
                for _ in stream._pieces:
                    if len(chat._state.last.result.token_ids) == tokens:
                        break
            known[key] = go_on(chat)
        return known[key]

    return find


def tokens_of_second_turn(chat):
    return len(chat._state.last.result.token_ids) if len(chat.turns) == 2 else None


@pytest.mark.parametrize("keep", ["compressed", "reusable"])
@pytest.mark.parametrize("name", POLICIES)
def test_any_line(engine, pictures, stopped, name, keep):
    chat = started(engine, pictures, name, keep)
    with interrupted(-1, KeyboardInterrupt) as lines:
        chat.ask(SECOND, max_new_tokens=NEW)
    assert tokens_of_second_turn(chat) == NEW
    rng = np.random.default_rng(len(name) + len(keep))
    places = set()
    for at in sorted(rng.choice(lines[0], POINTS, replace=False).tolist()):
        chat = started(engine, pictures, name, keep)
        with interrupted(at + 1, KeyboardInterrupt if at % 2 else InjectedError):
            chat.ask(SECOND, max_new_tokens=NEW)
        tokens = tokens_of_second_turn(chat)
        places.add(tokens)
        assert go_on(chat) == stopped(name, keep, tokens), (at, tokens)
    assert None in places
    assert len(places) > NEW // 2


@pytest.mark.parametrize("keep", ["compressed", "reusable"])
@pytest.mark.parametrize("name", POLICIES)
def test_any_call_of_the_backend(engine, pictures, stopped, monkeypatch, name, keep):
    """At each chunk and each step, before and after the call."""
    backend = type(engine.model.backend)
    steps = type(engine.model.backend.steps(started(engine, pictures, name, keep)._state.last.cache))
    calls, at, late = [0], [0], [False]

    def wrap(owner, method):
        original = getattr(owner, method)

        def wrapped(*arguments):
            calls[0] += 1
            now = calls[0] == at[0]
            if now and not late[0]:
                raise InjectedError
            made = original(*arguments)
            if now:
                raise InjectedError
            return made

        monkeypatch.setattr(owner, method, wrapped)

    for owner, methods in ((backend, ("extend", "evict")), (steps, ("step", "overwrite"))):
        for method in methods:
            wrap(owner, method)
    done = False
    while not done:
        for late[0] in (False, True):
            chat = started(engine, pictures, name, keep)
            calls[0], at[0] = 0, abs(at[0]) + (not late[0])
            try:
                chat.ask(SECOND, max_new_tokens=NEW)
                done = True
            except InjectedError:
                pass
            at[0] = -at[0]
            tokens = tokens_of_second_turn(chat)
            assert go_on(chat) == stopped(name, keep, tokens), (at, late)
    assert -at[0] > NEW


@pytest.mark.parametrize("name", POLICIES)
def test_any_piece(engine, pictures, stopped, name):
    for tokens in range(1, NEW + 1):
        chat = started(engine, pictures, name, "compressed")
        with pytest.raises(InjectedError):
            for _ in chat.stream(SECOND, max_new_tokens=NEW)._pieces:
                if tokens_of_second_turn(chat) == tokens:
                    raise InjectedError
        # a refused question changes nothing, and the interrupted answer may still be asked about
        with pytest.raises(PromptError):
            chat.ask(" ")
        assert go_on(chat) == stopped(name, "compressed", tokens)


def test_a_first_turn_that_never_was(engine, pictures):
    clean = engine.chat("h2o", 0.3)
    want = clean.ask(FIRST, pictures[:1], max_new_tokens=NEW).token_ids
    for at in (1, 40, 400):
        chat = engine.chat("h2o", 0.3)
        with interrupted(at, KeyboardInterrupt):
            chat.ask(SECOND, max_new_tokens=NEW)
        assert (chat.turns, chat.token_ids.tolist()) == ([], [])
        assert chat.ask(FIRST, pictures[:1], max_new_tokens=NEW).token_ids == want


def test_interrupted_twice(engine, pictures, stopped):
    """Again while the next turn puts right what it finds."""
    for name in ("h2o", "full"):
        for first in range(300, 2400, 300):
            chat = started(engine, pictures, name, "compressed")
            with interrupted(first, KeyboardInterrupt):
                chat.ask(SECOND, max_new_tokens=NEW)
            tokens = tokens_of_second_turn(chat)
            for second in range(1, 120, 7):
                with interrupted(second, KeyboardInterrupt):
                    chat.ask(THIRD, max_new_tokens=LAST)
                assert len(chat.turns) == (1 if tokens is None else 2)
            assert go_on(chat) == stopped(name, "compressed", tokens)


SAMPLED = {"temperature": 4.0, "max_new_tokens": 8}


def sampled(engine, name, keep, seed, tokens, **settings):
    """A chat whose first answer is drawn, and cut after some tokens."""
    chat = engine.chat(name, 1.0 if name == "full" else 0.3, keep=keep)
    for _ in chat.stream(FIRST, seed=seed, **SAMPLED, **settings)._pieces:
        if len(chat._state.last.result.token_ids) == tokens:
            break
    return chat


@pytest.mark.parametrize("keep", ["compressed", "reusable"])
@pytest.mark.parametrize("name", ["full", "vl-cache", "h2o"])
def test_a_stop_text_is_no_part_of_the_conversation(engine, name, keep):
    checked = 0
    for seed in range(20):
        tokens = sampled(engine, name, keep, seed, -1)._state.last.result.token_ids
        words = engine.words(tokens)
        if len(words) < 6 or words[4] in words[:4] or not engine.decode(tokens[4:5]).strip():
            continue
        stopped = sampled(engine, name, keep, seed, -1, stop=engine.decode(tokens[4:6]).strip())
        result = stopped._state.last.result
        if result.finish_reason != "stop" or (name == "h2o" and keep == "compressed"):
            # what made way for the stop text is gone, so that it stays
            assert stopped.token_ids[result.prompt_tokens :].tolist() == result.token_ids
            continue
        assert len(result.token_ids) > 4
        assert stopped.token_ids[result.prompt_tokens :].tolist()[:4] == tokens[:4]
        assert len(stopped.token_ids) - result.prompt_tokens <= 5
        said = len(stopped.token_ids) - result.prompt_tokens
        if said == 4:
            assert go_on(stopped)[:2] == go_on(sampled(engine, name, keep, seed, 4))[:2]
            checked += 1
    assert checked or (name == "h2o" and keep == "compressed")


def test_the_special_token_of_a_stop_text_is_the_templates_to_write(engine):
    tokenizer = engine.model.tokenizer
    name = next(text for text in ("</s>", "<pad>", "<image>") if tokenizer.special_ids([text]))
    (index,) = tokenizer.special_ids([name])
    chats = []
    for stop in ((), (name,)):
        chat = engine.chat("full")
        chat.ask(FIRST, max_new_tokens=1, stop=stop, logit_bias={index: 100.0})
        assert chat._state.last.result.token_ids == [index]
        chats.append(chat)
    plain = chats[0]._state.last.result.finish_reason == "length"
    assert len(chats[1].token_ids) == len(chats[0].token_ids) - plain
