"""Videos of a chat completion: frames by URL, in the places of their parts."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from vlkv.errors import PromptError
from vlkv.inputs.messages import PICTURE, VIDEO
from vlkv.serving.openai.protocol import ChatRequest, RequestError, decode
from vlkv.serving.openai.questions import of_chat


def asked(*content) -> ChatRequest:
    request = {"messages": [{"role": "user", "content": list(content)}]}
    return decode(msgspec.json.encode(request), ChatRequest)


async def read(url: str) -> bytes:
    return url.encode()


def test_frames_of_videos():
    picture = {"type": "image_url", "image_url": {"url": "p"}}
    videos = [{"type": "video", "video": ["a", "b"]}, {"type": "video", "video": ["c"]}]
    text = {"type": "text", "text": "what"}
    (question,) = asyncio.run(of_chat(asked(videos[0], picture, text, videos[1]), read, "full"))
    assert question.messages[0].parts == (VIDEO, PICTURE, "what", VIDEO)
    assert question.images == (b"p",)
    assert [video.source for video in question.videos] == [[b"a", b"b"], [b"c"]]


def test_what_is_refused():
    with pytest.raises(PromptError, match="the request has 65 pictures, the limit is 64"):
        asyncio.run(of_chat(asked({"type": "video", "video": ["a"] * 65}), read, "full"))
    for part in ({"type": "video", "video": []}, {"type": "video_url", "video_url": {"url": "a"}}):
        with pytest.raises(RequestError):
            asked(part)
