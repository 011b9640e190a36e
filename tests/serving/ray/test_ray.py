"""A real local Ray cluster of two replicas: answers, routing by picture, and the loss of one replica."""

from __future__ import annotations

import base64
import io
import itertools
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from serving.openai.conftest import Served

openai = pytest.importorskip("openai")
pytest.importorskip("ray", reason="ray is not installed: make .venv/tested")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of ray's own
]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", 3, "--most-replicas", 2], "--most-replicas 2 is under --replicas 3"),
        (["--device", "cuda"], "--ray serves on CPUs"),
        (["--memory", "1KiB"], "does not hold one token"),
        (["--ray-address", "127.0.0.1:1"], "no Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_wrong_settings_are_refused(shipped, vlkv, options, said):
    code, _, error = vlkv("serve", shipped, "--ray", "--port", 0, *options)
    assert code == 2 and said in error, error
    assert len(error.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def cluster(shipped, tmp_path_factory):
    """Runs `vlkv serve --ray` with two replicas; returns the address of the API."""
    log = tmp_path_factory.mktemp("ray") / "log"
    sizes = ["--slots", "4", "--memory", "32MiB", "--threads", "1"]
    server = Served(shipped, log, "--ray", "--replicas", "2", *sizes, patience=600)
    yield f"{server.url}/v1"
    assert server.stop() == 0, log.read_text()


def uri(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def ask(client, text, data, **settings):
    """Returns the replica that answered, and its answer."""
    content = [{"type": "image_url", "image_url": {"url": uri(data)}}, {"type": "text", "text": text}]
    raw = client.chat.completions.with_raw_response.create(
        model="llava", messages=[{"role": "user", "content": content}], **settings
    )
    return int(raw.headers["x-vlkv-replica"]), raw.parse().choices[0].message.content


def patiently(work, seconds=60):
    """Retries until the cluster's proxy accepts connections. A busy machine may drop some after a replica dies."""
    end = time.monotonic() + seconds
    while True:
        try:
            return work()
        except openai.APIConnectionError:
            if time.monotonic() > end:
                raise


def form(number):
    """Returns a new picture for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (336, 336, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_answers_routing_and_a_death(cluster, opened, picture):
    client = openai.OpenAI(base_url=cluster, api_key="x", max_retries=0, timeout=120)
    wanted = opened.generate("what is the type?", images=[picture]).text
    replica, text = ask(client, "what is the type?", picture)
    assert text == wanted
    again = {ask(client, question, picture)[0] for question in ("what is the date?", "type?", "date?")}
    assert again == {replica}, "a picture's questions go to the replica that has seen it"
    places = {ask(client, "type?", form(number))[0] for number in range(12)}
    assert len(places) == 2, "other pictures go to both"
    streamed = client.chat.completions.create(
        model="llava",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": uri(picture)}},
                    {"type": "text", "text": "what is the type?"},
                ],
            }
        ],
        stream=True,
    )
    assert "".join(choice.delta.content or "" for chunk in streamed for choice in chunk.choices) == wanted
    with pytest.raises(openai.BadRequestError, match="unknown policy"):
        ask(client, "type?", picture, extra_body={"policy": "best"})
    os.kill(replica, signal.SIGKILL)
    other, text = patiently(lambda: ask(client, "what is the type?", picture))
    assert text == wanted and other != replica, "what was not yet answered is given to another replica"
    end = time.monotonic() + 120
    fresh = itertools.count(100)  # a picture is routed to the replica that has seen it
    while len({patiently(lambda: ask(client, "type?", form(next(fresh))))[0] for _ in range(8)}) < 2:
        assert time.monotonic() < end, "the dead replica is replaced"
