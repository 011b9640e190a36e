"""A model that writes any text: JSON schemas, the bytes of tokens, where tokens begin, and usage of several prompts."""

from __future__ import annotations

import json

import openai
import pytest

from models import tiny
from serving.openai.test_openai import said

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer", "minimum": 0, "maximum": 99}, "paid": {"type": "boolean"}},
    "required": ["total", "paid"],
    "additionalProperties": False,
}
ASKED = {"model": "llava", "messages": said("what é?"), "max_tokens": 80}


@pytest.fixture(scope="module")
def client(writer):
    with writer.client() as client:
        yield client


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of(tiny.BYTES)


def following(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def check(text):
    found = json.loads(text)
    assert set(found) == {"total", "paid"} and type(found["paid"]) is bool
    assert type(found["total"]) is int and 0 <= found["total"] <= 99


def test_answers_follow_a_schema(client):
    reply = client.chat.completions.create(
        **ASKED, response_format=following(SCHEMA), temperature=1.0, seed=5, n=3
    )
    for choice in reply.choices:
        check(choice.message.content)
        assert choice.finish_reason == "stop"


def test_streamed_choices_follow_a_schema_and_have_their_log_probabilities(client):
    chunks = client.chat.completions.create(
        **ASKED,
        response_format=following(SCHEMA),
        temperature=1.0,
        seed=5,
        n=2,
        stream=True,
        logprobs=True,
        stream_options={"include_usage": True},
    )
    texts, tokens, used = ["", ""], [b"", b""], []
    for chunk in chunks:
        used += [chunk.usage.completion_tokens] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            for one in choice.logprobs.content if choice.logprobs else ():
                tokens[choice.index] += bytes(one.bytes or ())
    for text, data in zip(texts, tokens, strict=True):
        check(text)
        assert data == text.encode()
    assert used == [sum(len(text) + 1 for text in texts)]


def test_any_json_is_an_object(client):
    reply = client.chat.completions.create(
        **ASKED | {"max_tokens": 3}, response_format={"type": "json_object"}
    )
    assert reply.choices[0].message.content.strip().startswith("{")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable schema"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema"),
        ({"type": "nope"}, "Invalid type: nope"),
        ({"not": {}}, "Unimplemented keys"),
        ({"$ref": "http://a/b"}, "not present in a registry"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"enum": []}, "Unsatisfiable schema"),
    ],
)
def test_schemas_that_nothing_can_follow_are_refused(client, schema, told):
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        client.chat.completions.create(**ASKED, response_format=following(schema))
    assert "the JSON schema can't be followed" in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]


def test_tokens_have_their_own_bytes(client, engine):
    wanted = engine.generate(ASKED["messages"][0]["content"][0]["text"], max_new_tokens=40)
    reply = client.chat.completions.create(**ASKED | {"max_tokens": 40}, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    data = b"".join(bytes(one.bytes or ()) for one in content)
    assert data.decode(errors="replace") == reply.choices[0].message.content == wanted.text
    for one in (*content, *(top for each in content for top in each.top_logprobs)):
        raw = bytes(one.bytes or ())
        if not raw:
            assert one.token in {*tiny.SPECIAL, ""}
        elif "\ufffd" in raw.decode(errors="replace"):
            assert one.token == "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        else:
            assert one.token == raw.decode()


def test_where_the_tokens_of_completions_begin(client):
    asked = {"model": "llava", "prompt": ["ab", "cde"], "max_tokens": 30, "logprobs": 1}
    whole = client.completions.create(**asked)
    offsets = [choice.logprobs.text_offset for choice in whole.choices]
    for choice, found in zip(whole.choices, offsets, strict=True):
        assert len(found) == len(choice.logprobs.tokens) and found[0] == 0 and found == sorted(found)
        for token, begin in zip(choice.logprobs.tokens, found, strict=True):
            silent = token.startswith("bytes:") or token in tiny.SPECIAL
            assert silent or choice.text[begin:].startswith(token)
    streamed = [[], []]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert streamed == offsets


def test_each_prompt_counts_once(client):
    def used(prompt, n):
        reply = client.completions.create(model="llava", prompt=prompt, max_tokens=2, n=n, temperature=1.0)
        return reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens

    one, other = used("ab", 1)[0], used("cdefg", 1)[0]
    assert other == one + 3
    assert used(["ab", "cdefg"], 2) == (one + other, 8, one + other + 8)
    assert used("ab", 3) == (one, 6, one + 6)


@pytest.mark.parametrize("form", [lambda message: message, lambda message: message.model_dump()])
def test_an_answer_is_sent_back_as_it_came(client, form):
    first = client.chat.completions.create(**ASKED | {"max_tokens": 4})
    turns = [*ASKED["messages"], form(first.choices[0].message), *said("and?")]
    again = client.chat.completions.create(**ASKED | {"messages": turns, "max_tokens": 4})
    assert again.usage.prompt_tokens > first.usage.prompt_tokens + 4


def test_null_is_as_good_as_nothing(client):
    from vlkv.serving.openai.protocol import ChatRequest, CompletionRequest

    for kind, create, needed in (
        (ChatRequest, client.chat.completions.create, {"messages": ASKED["messages"]}),
        (CompletionRequest, client.completions.create, {"prompt": "ab"}),
    ):
        given = {*needed, "model", "max_tokens"}
        empty = dict.fromkeys(set(kind.__struct_fields__) - given)
        plain = create(model="llava", max_tokens=3, **needed).choices[0]
        assert create(model="llava", max_tokens=3, extra_body=empty, **needed).choices[0] == plain
