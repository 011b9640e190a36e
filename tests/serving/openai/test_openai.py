"""OpenAI's API over the shipped engine, through the `openai` package's client."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from vlkv import Question

openai = pytest.importorskip("openai")

ASKED = ("what is the type?", "what is the date?", "type?")


def said(text, *uris):
    """Returns a user's message with pictures before its text."""
    pictures = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def post(served, path, body, **headers):
    """Returns status and JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{served.url}{path}", data, {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("policy", ["full", "vl-cache"])
@pytest.mark.parametrize("text", ASKED)
def test_an_answer_is_that_of_the_engine(client, opened, picture, uri, text, policy):
    budget = None if policy == "full" else 0.2
    wanted = opened.generate(text, images=[picture], policy=policy, budget=budget)
    own = {"policy": policy} | ({} if budget is None else {"budget": budget})
    reply = client.chat.completions.create(model="llava", messages=said(text, uri), extra_body=own)
    assert reply.choices[0].message.content == wanted.text
    assert reply.choices[0].finish_reason == wanted.finish_reason
    assert reply.usage.prompt_tokens == wanted.prompt_tokens
    assert reply.usage.completion_tokens == len(wanted.token_ids)
    assert reply.usage.vlkv["kept_tokens"] == sum(wanted.kept_tokens) // len(wanted.kept_tokens)


def test_a_pruned_answer_is_that_of_the_engine(client, opened, picture, uri):
    wanted = opened.generate(ASKED[0], images=[picture], prune="diverse:0.3")
    reply = client.chat.completions.create(
        model="llava", messages=said(ASKED[0], uri), extra_body={"prune": "diverse:0.3"}
    )
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.prompt_tokens == wanted.prompt_tokens
    assert reply.usage.vlkv["pruned_tokens"] == wanted.pruned_tokens > 0


def test_an_answer_that_recalls_is_that_of_the_engine(client, opened, picture, uri):
    own = {"policy": "snapkv", "budget": 0.1, "recall": 0.2}
    wanted = opened.generate(ASKED[0], images=[picture], **own)
    reply = client.chat.completions.create(model="llava", messages=said(ASKED[0], uri), extra_body=own)
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.vlkv["recall_bytes"] == wanted.recall_bytes > 0


def test_a_stream_has_the_same_text_and_its_usage(client, opened, picture, uri):
    wanted = opened.generate(ASKED[0], images=[picture])
    chunks = list(
        client.chat.completions.create(
            model="llava",
            messages=said(ASKED[0], uri),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == wanted.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(wanted.token_ids)


def test_choices_seeds_and_stops(client, uri):
    settings = {
        "model": "llava",
        "messages": said("type?", uri),
        "temperature": 20.0,
        "seed": 3,
        "max_tokens": 8,
    }
    first = client.chat.completions.create(**settings, n=3)
    again = client.chat.completions.create(**settings, n=3)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) > 1
    whole = (
        client.chat.completions.create(model="llava", messages=said("type?", uri)).choices[0].message.content
    )
    cut = client.chat.completions.create(model="llava", messages=said("type?", uri), stop=[whole[1]])
    assert cut.choices[0].message.content == whole[: whole.index(whole[1])]
    short = client.chat.completions.create(
        model="llava", messages=said("type?", uri), max_completion_tokens=1
    )
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1


def test_log_probabilities(client, opened, picture, uri):
    """They are the softmax of the engine's own logits."""
    question = Question(ASKED[0], [picture], policy="full")
    wanted = opened.generate(ASKED[0], images=[picture], policy="full")
    steps = list(opened.forced(question, wanted.token_ids[:-1]))
    reply = client.chat.completions.create(
        model="llava",
        messages=said(ASKED[0], uri),
        logprobs=True,
        top_logprobs=3,
        extra_body={"policy": "full"},
    )
    content = reply.choices[0].logprobs.content
    assert len(content) == len(wanted.token_ids)
    for step, token, told in zip(steps, wanted.token_ids, content, strict=True):
        wide = step.logits.astype(np.float64)
        expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        assert told.logprob == pytest.approx(expected[token], abs=1e-4)
        best = np.sort(expected)[::-1][:3]
        np.testing.assert_allclose([one.logprob for one in told.top_logprobs], best, atol=1e-4)
    streamed = client.chat.completions.create(
        model="llava", messages=said(ASKED[0], uri), logprobs=True, stream=True, extra_body={"policy": "full"}
    )
    tokens = [
        one.logprob
        for chunk in streamed
        for choice in chunk.choices
        if choice.logprobs
        for one in choice.logprobs.content
    ]
    np.testing.assert_allclose(tokens, [one.logprob for one in content], atol=1e-6)


def test_biases_and_penalties_change_the_answer(client, opened, picture, uri):
    wanted = opened.generate("type?", images=[picture])
    banned = {str(wanted.token_ids[0]): -100}
    reply = client.chat.completions.create(model="llava", messages=said("type?", uri), logit_bias=banned)
    assert reply.choices[0].message.content != wanted.text
    eager = {str(wanted.token_ids[0]): 100}
    settings = {"model": "llava", "messages": said("type?", uri), "logit_bias": eager, "max_tokens": 6}
    assert len(set(client.chat.completions.create(**settings).choices[0].message.content)) == 1


def test_transformers_settings_are_fields(client, opened, picture, uri):
    wanted = opened.generate("type?", images=[picture], max_new_tokens=8)
    first = wanted.token_ids[0]
    for fields in (
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 8},
        {"suppress_tokens": [first]},
        {"bad_words_ids": [[first], wanted.token_ids[:2]]},
    ):
        mine = opened.generate("type?", images=[picture], max_new_tokens=8, **fields)
        reply = client.chat.completions.create(
            model="llava", messages=said("type?", uri), max_tokens=8, extra_body=fields
        )
        assert reply.choices[0].message.content == mine.text
        if "suppress_tokens" in fields or "bad_words_ids" in fields:
            assert first not in mine.token_ids


def test_completions_are_raw(client, opened):
    wanted = opened.generate("type", raw=True, max_new_tokens=5)
    reply = client.completions.create(model="llava", prompt="type", max_tokens=5, logprobs=2)
    assert reply.choices[0].text == wanted.text
    assert len(reply.choices[0].logprobs.token_logprobs) == len(wanted.token_ids)
    two = client.completions.create(model="llava", prompt=["type", "date"], max_tokens=3)
    assert [choice.index for choice in two.choices] == [0, 1]
    pieces = client.completions.create(model="llava", prompt="type", max_tokens=5, stream=True)
    assert "".join(choice.text for chunk in pieces for choice in chunk.choices) == wanted.text


def test_models_and_health(served, client):
    assert [model.id for model in client.models.list()] == ["llava"]
    assert client.models.retrieve("llava").id == "llava"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4")
    with urllib.request.urlopen(f"{served.url}/health", timeout=60) as reply:
        assert json.loads(reply.read()) == {"status": "ok"}


@pytest.mark.parametrize(
    ("change", "param", "text"),
    [
        ({"messages": []}, "messages", "is empty"),
        ({"messages": [{"role": "user", "content": "   "}]}, None, "prompt is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "Invalid enum value"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "must be 'user'"),
        ({"messages": said("<image> what?")}, None, "part of its own"),
        ({"tools": []}, "tools", "parameter 'tools' is not supported"),
        ({"temperature": -1}, "temperature", "temperature -1"),
        ({"temperature": "hot"}, "temperature", "Expected `float | null`"),
        ({"top_p": 2}, "top_p", "top_p"),
        ({"n": 0}, "n", "outside 1 to"),
        ({"max_tokens": 0}, "max_tokens", "under 1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "under 1"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "Invalid enum value 'audio'"),
        ({"tool_choice": "auto"}, "tool_choice", "parameter 'tool_choice' is not supported"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
            "messages[0].tool_calls",
            "parameter 'messages[0].tool_calls' is not supported",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs", "outside 0 to 20"),
        ({"frequency_penalty": 9}, "frequency_penalty", "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "not a token id"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "vocabulary"),
        ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty 0.0 is not above 0"),
        ({"no_repeat_ngram_size": 65}, "no_repeat_ngram_size", "no_repeat_ngram_size 65"),
        ({"suppress_tokens": ["a"]}, "suppress_tokens[0]", "Expected `int`"),
        ({"suppress_tokens": list(range(1025))}, "suppress_tokens", "at most 1024"),
        ({"bad_words_ids": [[999999]]}, "bad_words_ids", "vocabulary"),
        ({"bad_words_ids": [[]]}, "bad_words_ids", "lists of 1 to 32"),
        ({"policy": "best"}, "policy", "unknown policy 'best'"),
        ({"prune": "best"}, "prune", "unknown prune 'best'"),
        ({"recall": 2}, "recall", "recall 2.0 is outside (0, 1]"),
        ({"recall": 0.1, "policy": "full"}, "policy", "policy 'full' evicts nothing"),
        ({"recall": 0.1, "policy": "h2o"}, "policy", "policy 'h2o' evicts while decoding"),
        ({"budget": 3}, "budget", "budget 3"),
        ({"messages": said("what?", "/etc/passwd")}, "image_url", "neither a data URI"),
        ({"messages": said("what?", "file:///etc/passwd")}, "image_url", "neither a data URI"),
        ({"messages": said("what?", "http://127.0.0.1:1/a.png")}, "image_url", "fetches no pictures"),
        ({"messages": said("what?", "data:text/html,x")}, "image_url", "text/html"),
        ({"messages": said("what?", "data:image/png;base64,AAAA")}, None, "not a picture"),
        (
            {"messages": said("what?", "data:image/png;base64,AA!A")},
            "image_url",
            "4 characters are not base64",
        ),
        (
            {"messages": said("what?", "data:image/png;base64,AAAAA")},
            "image_url",
            "base64 of 5 characters is damaged",
        ),
    ],
)
def test_what_is_wrong_is_said_in_openais_form(served, change, param, text):
    status, body = post(served, "/v1/chat/completions", {"messages": said("type?"), **change})
    assert status == 400, body
    assert body["error"]["type"] == "invalid_request_error"
    assert text in body["error"]["message"] and "\n" not in body["error"]["message"]
    assert body["error"]["param"] == param


def test_other_wrongs_have_their_own_status(served):
    assert post(served, "/v1/chat/completions", {"model": "gpt", "messages": said("x")})[0] == 404
    assert post(served, "/v1/chat/completions", b"{")[0] == 400
    assert post(served, "/v1/chat/completions", b"[" * 100_000)[0] == 400
    status, body = post(served, "/v1/embeddings", {})
    assert status == 404 and body["error"]["message"] == "no such path"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{served.url}/v1/chat/completions", timeout=60)
    assert caught.value.code == 405
    caught.value.close()


def test_whoever_goes_away_frees_the_lane(served, client, long_answer):
    settings, _ = long_answer
    stream = client.completions.create(
        model="llava",
        prompt="type?",
        max_tokens=settings["max_tokens"],
        temperature=settings["temperature"],
        seed=settings["seed"],
        stream=True,
    )
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 60
    while served.metrics()["vlkv_slots_used"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_many_at_once_get_their_own_answers(served, opened, picture, uri):
    wanted = {text: opened.generate(text, images=[picture]).text for text in ASKED}
    found = []

    def ask(text):
        reply = served.client().chat.completions.create(model="llava", messages=said(text, uri))
        found.append((text, reply.choices[0].message.content))

    threads = [threading.Thread(target=ask, args=(ASKED[n % 3],)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and all(wanted[text] == answer for text, answer in found)
    numbers = served.metrics()
    assert numbers["vlkv_time_to_first_token_seconds_count"] >= 12
    assert numbers["vlkv_cache_bytes"] == 0
