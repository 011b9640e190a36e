"""What a client may do before its request is there, and with what it sends: all has a limit, told in one line."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time

import pytest

from vlkv.serving.openai import connections, protocol
from vlkv.serving.openai.app import Settings, make_app
from vlkv.serving.ray.asgi import call

WAIT = 60
CHAT = "/v1/chat/completions"


def asked(content="what", **more):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2} | more


@pytest.fixture(scope="module")
def app(opened):
    with opened.scheduler(slots=2, memory=32 << 20) as scheduler:
        yield make_app(opened, scheduler, Settings(max_body=1 << 23), lambda: None)


def ask(app, body, path=CHAT, headers=()):
    """Status, and the error's message or ""."""

    async def run():
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = [part async for part in call(app, "POST", path, headers, data)]
        return found[0][0], json.loads(b"".join(found[1:]))

    status, answer = asyncio.run(run())
    return status, answer.get("error", {}).get("message", "")


def test_a_compressed_body_is_refused_by_name(app):
    data = json.dumps(asked()).encode()
    coding = [(b"content-encoding", b"gzip")]
    told = (415, "content-encoding 'gzip' is not supported: send the body as it is")
    assert ask(app, gzip.compress(data), headers=coding) == told
    assert ask(app, data, headers=[(b"content-encoding", b"identity")]) == (200, "")


PIXELS = [
    {"type": "image_url", "image_url": {"url": "data:," + "%" * (1 << 20)}},
    {"type": "text", "text": "a"},
]


@pytest.mark.parametrize(
    "body, told",
    [
        (asked("a " * 40_000), "prompt has 80000 characters; the model has 1024 positions, and the limit is 65536"),
        (asked([{"type": "text", "text": "a"}] * 4097), "length <= 4096 - at `$.messages[0].content`"),
        (asked([{"type": "text", "text": "a"}] * 1025), "prompt has 1025 messages and parts; the model has 1024"),
        ({"messages": [{"role": "user", "content": "a"}] * 16385}, "length <= 16384 - at `$.messages`"),
        (asked([{"type": "video", "video": ["data:,"] * 4097}]), "length <= 4096"),
        (asked(PIXELS), "not a picture that can be read"),
        (asked(stop=["a"] * 65), "length <= 64 - at `$.stop`"),
        (asked(stop="a" * 10**6), "stop has a text of 1000000 characters, the limit is 256"),
        (asked(stop=""), "stop ('',) is not texts that are not empty"),
        (asked(logit_bias={str(n): 1 for n in range(1025)}), "length <= 1024 - at `$.logit_bias`"),
        (asked(bad_words_ids=[[1]] * 10**5), "bad_words_ids [[1], [1], "),
        (asked(metadata={"a": [{}] * 2**18}), "commas and brackets, the limit is 262144"),
        (asked(policy="a" * 10**6), "unknown policy 'aaa"),
        (asked(model="a" * 10**6), "the model 'aaa"),
        (asked(prune="a" * 10**6), "unknown prune 'aaa"),
        (asked(**{"a" * 10**6: 1}), "' is not supported"),
        (b'{"temperature": 1e400}', "Number out of range - at `$.temperature`"),
        (b'{"seed":' + b"9" * 5000 + b"}", "out of range - at `$.seed`"),
        (b"[" * 100_000, "Expected `object`, got `array`"),
        (json.dumps(asked(metadata=0)).encode().replace(b": 0", b': {"a":' + b"[" * 10**5), "recursion"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
    ],
)  # fmt: skip
def test_each_kind_of_too_much_is_one_short_line(app, body, told):
    status, message = ask(app, body)
    assert 400 <= status < 500
    assert told in message and "\n" not in message and len(message) <= 1100


def test_an_error_of_the_body_itself_names_no_field(app):
    with pytest.raises(protocol.RequestError) as caught:
        protocol.decode(b"[]", protocol.ChatRequest)
    assert caught.value.param is None


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(app):
    status, message = ask(app, b"", headers=[(b"content-length", b"9000000000")])
    assert (status, message) == (413, f"the body has more than {1 << 23} bytes")


class Request:
    """A request whose body comes in these pieces."""

    def __init__(self, *pieces, headers=()):
        self.pieces, self.headers = pieces, dict(headers)

    async def stream(self):
        for piece in self.pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield piece


def test_bodies_are_held_to_a_limit_in_bytes_and_in_time(monkeypatch):
    bodies = connections.Bodies(10)

    async def read(*pieces, during=None):
        async with bodies.reading(Request(*pieces)) as data:
            if during is not None:
                await during()
            return data

    async def run():
        assert await read(b"12345", b"67890") == b"1234567890"
        with pytest.raises(protocol.RequestError, match="more than 10 bytes"):
            await read(b"12345", b"678901")
        monkeypatch.setattr(connections, "BODIES", 1)

        async def beside():
            assert bodies.held == 8
            with pytest.raises(
                connections.ServerFullError, match="bodies of requests take 11 bytes, the limit is 10"
            ):
                await read(b"123")

        assert await read(b"12345678", during=beside) == b"12345678"
        monkeypatch.setattr(connections, "PIECE_SECONDS", 0.05)
        with pytest.raises(protocol.RequestError, match=r"did not come: 0\.05 s without a byte") as caught:
            await read(b"1", 5.0, b"2")
        assert caught.value.status == 408
        with pytest.raises(TimeoutError):  # an error of what is done with the body stays what it is
            await read(b"1", during=lambda: asyncio.wait_for(asyncio.sleep(5), 0.01))
        assert bodies.held == 0

    asyncio.run(run())


@pytest.fixture
def port(monkeypatch):
    """A server of nothing whose connections have little time."""
    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)

    async def hello(scope, receive, send):
        await asyncio.sleep(0.6)  # an answer may take longer than a head
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(
        hello, http=connections.Connection, h11_max_incomplete_event_size=connections.HEAD_BYTES, ws="none",
        lifespan="off", log_level="error",
    )  # fmt: skip
    server, listening = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(WAIT)
    listening.close()


def all_of(opened):
    """What the server sends until it closes the connection."""
    found = b""
    try:
        while piece := opened.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"\r\n" + HEAD])
def test_a_head_that_does_not_end_closes_its_connection(port, sent):
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as opened:
        begin = time.monotonic()
        opened.sendall(sent)
        answer = all_of(opened)
        assert time.monotonic() - begin < WAIT / 2
        assert (b"200 OK" in answer) == sent.endswith(b"\r\n\r\n" + HEAD)


def test_a_head_of_many_or_of_large_headers_is_refused(port):
    for line in (b"X-%d: y\r\n", b"X-%d: " + b"a" * 1000 + b"\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as opened:
            try:
                opened.sendall(HEAD + b"".join(line % number for number in range(20_000)))
                answer = all_of(opened)
            except OSError:  # it has closed the connection already
                continue
            assert answer == b"" or b" 400 " in answer.splitlines()[0]
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as opened:
        opened.sendall(HEAD + b"X: " + b"a" * 10_000 + b"\r\nConnection: close\r\n\r\n")
        assert b" 200 OK" in all_of(opened).splitlines()[0]


def test_a_schema_that_this_engine_cannot_follow_is_the_clients_error(app):
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    status, message = ask(app, asked(response_format=schema))
    assert status == 400
    assert message.startswith(
        "answers of this engine can't follow a schema: llguidance does not read its tokenizer"
    )
