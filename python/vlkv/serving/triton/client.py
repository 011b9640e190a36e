"""A streaming client of a vlkv model on Triton's HTTP endpoint. Times are in seconds."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from vlkv.serving.reply import Reply


def encode_image(data: bytes) -> str:
    """Encodes a picture's file for JSON."""
    return base64.b64encode(data).decode()


async def stream(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], model: str = "vlkv"
) -> AsyncIterator[dict[str, Any]]:
    """Yields the events of `generate_stream`; a server error is an event with `error`."""
    target = f"{url.rstrip('/')}/v2/models/{model}/generate_stream"
    async with session.post(target, json={**body, "stream": True}) as response:
        if response.content_type == "application/json":
            yield msgspec.json.decode(await response.read())
            return
        async for line in response.content:
            if line.startswith(b"data:"):
                yield msgspec.json.decode(line[5:])


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], model: str = "vlkv") -> Reply:
    """Sends one request and reads it to its end; errors are in the reply."""
    reply, start = Reply(), perf_counter()
    try:
        async for event in stream(session, url, body, model):
            if event.get("error"):
                reply.error = str(event["error"])
            if event.get("text"):
                reply.text += event["text"]
                reply.pieces.append(perf_counter() - start)
            if event.get("usage"):
                reply.usage = msgspec.json.decode(event["usage"])
                reply.finish_reason = event.get("finish_reason", "")
        if not (reply.error or reply.finish_reason):
            reply.error = "the answer was cut off"
    except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    reply.whole = perf_counter() - start
    reply.first = reply.pieces[0] if reply.pieces else 0.0
    return reply
