"""The parts of Ray Serve's deployments, without a cluster."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("ray", reason="ray is not installed: make .venv/tested")
pytestmark = pytest.mark.filterwarnings("ignore")  # of ray's own


def body(*urls, text="what?"):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": text}]
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


def test_a_key_is_of_the_pictures_alone():
    from vlkv.serving.ray.app import picture_key

    assert picture_key(body("data:a", text="x")) == picture_key(body("data:a", text="y")) != ""
    assert len({picture_key(body(*urls)) for urls in (["a"], ["b"], ["a", "b"], ["b", "a"])}) == 4
    for nothing in (
        b"",
        b"{",
        b'{"url"',
        body(),
        b'{"messages": 1, "url": 2}',
        b'{"messages": [{"content": ["url"]}], "url": 1}',
    ):
        assert picture_key(nothing) == ""


def collect(app, **given):
    from vlkv.serving.ray.asgi import call

    async def run():
        return [found async for found in call(app, "POST", "/x", [(b"a", b"b")], given.get("body", b""))]

    return asyncio.run(run())


def test_an_application_is_called():
    async def app(scope, receive, send):
        message = await receive()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"c", b"d")]})
        for piece in (message["body"], b"", scope["path"].encode(), scope["method"].encode()):
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    assert collect(app, body=b"hello") == [(201, [(b"c", b"d")]), b"hello", b"/x", b"POST"]


def test_an_application_that_fails_and_a_client_that_goes():
    async def failing(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        collect(failing)

    from vlkv.serving.ray.asgi import call

    heard = []

    async def waiting(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard.append("gone")
            raise

    async def run():
        pieces = call(waiting, "GET", "/", [], b"")
        assert (await anext(pieces))[0] == 200
        await pieces.aclose()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert heard == ["gone"]
