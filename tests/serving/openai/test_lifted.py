"""Long data URIs beside a body: the same request as without, and nothing else is taken for one."""

from __future__ import annotations

import base64
import json

import pytest

from vlkv.serving.openai.lifted import lift, read_chat
from vlkv.serving.openai.pictures import LONG_URI, from_data_uri
from vlkv.serving.openai.protocol import ChatRequest, RequestError, decode

FILE = bytes(range(256)) * (LONG_URI // 128)
URI = "data:image/png;base64," + base64.b64encode(FILE).decode()


def body(*parts, **more):
    return {"messages": [{"role": "user", "content": list(parts)}], **more}


def picture(uri=URI):
    return {"type": "image_url", "image_url": {"url": uri}}


def urls(asked):
    return [
        part.image_url.url
        for message in asked.messages
        for part in message.content
        if hasattr(part, "image_url")
    ]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", " \t:\n ")])
def test_a_request_is_the_same(separators):
    short = "data:image/png;base64,YWJj"
    text = {"type": "text", "text": f'"url": "{short}'}
    data = json.dumps(
        body(picture(), text, picture(short), picture(), seed=3), separators=separators
    ).encode()
    asked, lifted = read_chat(bytearray(data))
    plain = decode(data, ChatRequest)
    assert [bytes(lifted[url]).decode() if url in lifted else url for url in urls(asked)] == urls(plain)
    assert len(lifted) == 2
    assert asked.messages[0].content[1] == plain.messages[0].content[1]
    assert asked.seed == 3
    assert [from_data_uri(uri) for uri in lifted.values()] == [FILE] * 2


@pytest.mark.parametrize(
    "given",
    [
        body({"type": "text", "text": URI}),
        body({"type": "text", "text": f'a "url": "{URI}" b'}),
        body({"type": "text", "text": f'"url"{"x" * LONG_URI}'}),
        body(picture(), metadata={"url": URI}),
        body(picture(), metadata={'a"url': URI}),
        body(
            picture(),
            response_format={"type": "json_schema", "json_schema": {"schema": {"properties": {"url": URI}}}},
        ),
        body(picture(URI[:LONG_URI])),
        body({"type": "image_url", "image_url": {"url": URI, "detail": URI}}),
    ],
)
def test_what_is_no_pictures_stays(given):
    data = json.dumps(given).encode()
    asked, lifted = read_chat(data)
    plain = decode(data, ChatRequest)
    for url in [url for url in urls(asked) if url in lifted]:
        for message in asked.messages:
            for part in message.content:
                if getattr(part, "image_url", None) and part.image_url.url == url:
                    part.image_url.url = bytes(lifted[url]).decode()
    assert asked == plain


@pytest.mark.parametrize(
    "cut", [b'"url"', b'"url":', b'"url": "data:', b'"url": "data:' + b"A" * LONG_URI, b'"url"' * LONG_URI]
)
def test_bodies_that_break_off(cut):
    assert lift(cut) == (cut, {})
    with pytest.raises(RequestError):
        read_chat(b"{" + cut)


def test_an_escape_is_read_by_the_parser():
    data = json.dumps(body(picture(URI.replace("image/png", "image\\/png")))).replace("\\\\/", "\\/").encode()
    asked, lifted = read_chat(data)
    assert not lifted
    assert from_data_uri(urls(asked)[0]) == FILE


@pytest.mark.parametrize(
    "uri, told",
    [
        ("data:image/png;base64" + "A" * LONG_URI, "without a comma"),
        ("data:text/html;base64," + "A" * LONG_URI, "a picture has a type such as image/png"),
        ("data:image/png;base64," + "\xe9" * LONG_URI, "characters are not base64"),
        ("data:image/png;base64," + "A" * LONG_URI + "A", "damaged"),
    ],
)
def test_wrong_uris_are_told(uri, told):
    data = json.dumps(body(picture(uri)), ensure_ascii=False).encode()
    asked, lifted = read_chat(data)
    with pytest.raises(RequestError, match=told):
        from_data_uri(lifted[urls(asked)[0]])
    with pytest.raises(RequestError, match=told):
        from_data_uri(uri)
