"""LangChain's own chat model of OpenAI's API, unchanged: whole, streamed, in batches, structured, and asynchronous."""

from __future__ import annotations

import asyncio

import openai
import pytest

langchain = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed: make .venv/tested"
)
messages = pytest.importorskip("langchain_core.messages")
QUESTIONS = ["what is the type?", "type?"]


def model_at(served, **settings):
    return langchain.ChatOpenAI(
        base_url=f"{served.url}/v1", api_key="x", model="llava", temperature=0, max_retries=0, **settings
    )


@pytest.fixture
def model(served):
    return model_at(served)


@pytest.fixture
def asked(uri):
    """Messages with a picture as a data URI."""
    return [
        messages.HumanMessage(
            [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
        )
        for text in QUESTIONS
    ]


@pytest.fixture(scope="session")
def wanted(opened, picture):
    return [opened.generate(text, images=[picture]) for text in QUESTIONS]


def test_a_whole_answer_and_its_usage(model, asked, wanted):
    reply = model.invoke([messages.SystemMessage("be brief"), asked[0]])
    assert reply.usage_metadata["input_tokens"] > wanted[0].prompt_tokens  # the system's text
    reply = model.invoke([asked[0]])
    assert reply.content == wanted[0].text
    used = reply.usage_metadata
    assert used["input_tokens"] == wanted[0].prompt_tokens
    assert used["output_tokens"] == len(wanted[0].token_ids)
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
    assert reply.response_metadata["finish_reason"] == wanted[0].finish_reason


def test_langchains_own_form_of_a_picture(model, uri, wanted):
    picture = {"type": "image", "mime_type": "image/png", "base64": uri.partition(",")[2]}
    reply = model.invoke([messages.HumanMessage([picture, {"type": "text", "text": QUESTIONS[0]}])])
    assert reply.content == wanted[0].text


def test_a_streamed_answer_and_its_usage(served, asked, wanted):
    pieces = list(model_at(served, stream_usage=True).stream([asked[0]]))
    assert "".join(piece.content for piece in pieces) == wanted[0].text
    used = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert [one["output_tokens"] for one in used] == [len(wanted[0].token_ids)]


def test_a_batch(model, asked, wanted):
    assert [reply.content for reply in model.batch([[one] for one in asked])] == [one.text for one in wanted]


def test_vlkvs_own_fields(served, asked, opened, picture):
    own = {"policy": "vl-cache", "budget": 0.2}
    mine = opened.generate(QUESTIONS[0], images=[picture], **own)
    reply = model_at(served, extra_body=own).invoke([asked[0]])
    assert reply.content == mine.text
    kept = sum(mine.kept_tokens) // len(mine.kept_tokens)
    assert reply.response_metadata["token_usage"]["vlkv"]["kept_tokens"] == kept


def test_asynchronously(model, asked, wanted):
    async def run():
        whole = await model.ainvoke([asked[0]])
        pieces = [piece.content async for piece in model.astream([asked[0]])]
        batch = await model.abatch([[one] for one in asked])
        await model.root_async_client.close()
        return whole.content, "".join(pieces), [reply.content for reply in batch]

    texts = [one.text for one in wanted]
    assert asyncio.run(run()) == (texts[0], texts[0], texts)


def test_structured_output_follows_the_schema(writer, uri):
    schema = {
        "title": "answer",
        "type": "object",
        "properties": {
            "total": {"type": "integer", "minimum": 0, "maximum": 99},
            "kind": {"enum": ["bill", "note"]},
        },
        "required": ["total", "kind"],
        "additionalProperties": False,
    }
    asked = messages.HumanMessage(
        [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "total?"}]
    )
    structured = model_at(writer, max_tokens=80).with_structured_output(
        schema, method="json_schema", include_raw=True
    )
    found = structured.invoke([asked])
    assert found["parsing_error"] is None
    assert set(found["parsed"]) == {"total", "kind"} and found["parsed"]["kind"] in {"bill", "note"}
    assert 0 <= found["parsed"]["total"] <= 99 and type(found["parsed"]["total"]) is int
    assert found["raw"].usage_metadata["output_tokens"] > 0


def test_tools_are_refused_by_name(model, asked):
    function = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(openai.BadRequestError, match="parameter 'tools' is not supported") as caught:
        model.bind(tools=[{"type": "function", "function": function}]).invoke([asked[0]])
    assert caught.value.body["code"] == "unsupported_parameter"
