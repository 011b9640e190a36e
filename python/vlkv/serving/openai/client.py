"""A streaming client of OpenAI's API. Times are in seconds."""

from __future__ import annotations

import base64
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from vlkv.serving.reply import Reply

OWN = ("policy", "budget")


def data_uri(data: bytes) -> str:
    """A picture's file as a data URI; the server detects the format."""
    return f"data:;base64,{base64.b64encode(data).decode()}"


def body_of(prompt: str, pictures: list[bytes], max_tokens: int, model: str, **own: Any) -> dict[str, Any]:
    """The body of a chat completion; `own` are vlkv's settings, without those that are None."""
    parts = [{"type": "image_url", "image_url": {"url": data_uri(data)}} for data in pictures]
    content = [*parts, {"type": "text", "text": prompt}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        **{name: value for name, value in own.items() if value is not None},
    }


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], key: str = "x") -> Reply:
    """Sends one chat completion and reads it to its end; errors are in the reply."""
    reply, start = Reply(), perf_counter()
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {key}"}
    try:
        async with session.post(
            f"{url.rstrip('/')}/chat/completions", json=asked, headers=headers
        ) as response:
            if response.status != 200:
                reply.error = _message(await response.read()) or f"status {response.status}"
            async for line in response.content:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    _hear(reply, msgspec.json.decode(line[6:]), perf_counter() - start)
        if not (reply.error or reply.finish_reason):
            reply.error = "the answer was cut off"
    except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    reply.whole = perf_counter() - start
    reply.first = reply.pieces[0] if reply.pieces else 0.0
    return reply


def _hear(reply: Reply, chunk: dict[str, Any], now: float) -> None:
    if "error" in chunk:
        reply.error = str(chunk["error"].get("message", "error"))
        return
    for choice in chunk["choices"]:
        if choice["delta"].get("content"):
            reply.text += choice["delta"]["content"]
            reply.pieces.append(now)
        reply.finish_reason = choice["finish_reason"] or reply.finish_reason
    if chunk.get("usage"):
        used = chunk["usage"]
        reply.usage = {**used, "generated_tokens": used["completion_tokens"]}


def _message(data: bytes) -> str:
    try:
        return str(msgspec.json.decode(data)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return ""
