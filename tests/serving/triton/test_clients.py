"""Clients behind a real tritonserver: limits of each, who a request belongs to, and whose turn is next."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from serving.asking import WAIT, encode, post
from vlkv.errors import SamplingError
from vlkv.serving.triton.inputs import client_of, new_tokens
from vlkv.serving.triton.repository import Settings, write_repository

TOKENS = 4000
"""A minute, for each client."""
REFUSED = (400, 503)
"""Triton 2.51 makes 400 of every error of a streamed model at `generate`."""


@pytest.fixture(scope="module")
def limited(installed, shipped, tmp_path_factory):
    """A server with one lane, whose clients have limits and are named by a header."""
    from vlkv.serving.triton.server import Server

    base = tmp_path_factory.mktemp("clients")
    limits = {"client": "x-client", "client_requests": 3, "client_tokens": TOKENS}
    settings = Settings(str(shipped), slots=1, memory="32MiB", reuse="0", threads=1, **limits)
    write_repository(settings, shipped, base / "models")
    forward = ["http", "grpc"]
    arguments = tuple(f"--{kind}-header-forward-pattern=(?i)x-client" for kind in forward)
    with Server(base / "models", base / "server.log", arguments=arguments, grace=5) as running:
        running.wait(timeout=WAIT)
        yield running


def drain(server, picture, client):
    """Asks until the client's tokens are used up; the error."""
    body = {"prompt": "type?", "images": [encode(picture)], "max_tokens": 4, "x-client": client}
    for _ in range(TOKENS):
        status, text = post(server, "generate", body)
        if status != 200:
            assert status in REFUSED, text
            return json.loads(text)["error"]
    pytest.fail("it has no limit")


def test_tokens_are_limited_for_each_client(limited, picture):
    told = drain(limited, picture, "greedy")
    assert f"what is left of this client's {TOKENS} tokens a minute: try again in" in told
    for other in ({"x-client": "modest"}, {"x-client": 7}, {}):
        fields = {"prompt": "type?", "max_tokens": 4}
        assert post(limited, "generate", fields | other)[0] == 200
    status, text = post(
        limited, "generate", {"prompt": "type?", "max_tokens": TOKENS + 1, "x-client": "other"}
    )
    assert status == 400
    assert f"the limit of one client is {TOKENS} tokens a minute: ask for fewer" in text
    status, text = post(limited, "generate", {"prompt": "type?", "max_tokens": 1, "x-client": "x" * 1025})
    assert (status, "x-client has 1025 characters, the limit is 1024" in text) == (400, True)


def test_a_header_names_the_client_whatever_the_request_says(limited, grpc_client, picture):
    import tritonclient.grpc as grpc

    module, _ = grpc_client
    client = grpc.InferenceServerClient(f"127.0.0.1:{limited.grpc_port}")
    tensors = module.inputs("type?", max_tokens=900, stop=["0"])
    drain(limited, picture, "drained")

    def ask(given, headers, parameters):
        found, ended = [], threading.Event()

        def hear(result, error):
            found.append((result, error))
            if error is not None or result.get_response().parameters["triton_final_response"].bool_param:
                ended.set()

        client.start_stream(hear, headers=headers)
        try:
            client.async_stream_infer("vlkv", given, parameters=parameters, enable_empty_final_response=True)
            assert ended.wait(WAIT)
        finally:
            client.stop_stream()
        return next((str(error) for _, error in found if error is not None), "")

    assert ask(tensors, {"x-client": "other"}, {"x-client": "drained"}) == ""
    assert "try again in" in ask(tensors, {"x-client": "drained"}, {"x-client": "other"})


def test_the_last_of_equal_names_counts_in_any_case():
    given = [("x-client", "body"), ("priority", 3), ("X-Client", "header")]
    assert client_of(given, "x-client") == "header"
    assert client_of(given, "client") == client_of([], "x-client") == ""
    assert client_of([("client", 7)], "client") == "7"
    for wrong in (True, None, 0.5, ["a"]):
        with pytest.raises(SamplingError, match="is not a text"):
            client_of([("client", wrong)], "client")


def test_tokens_of_a_request_are_those_that_it_names():
    assert new_tokens({}) == 256
    assert new_tokens({"max_tokens": np.array([7], np.int32)}) == 7
    assert new_tokens({"max_tokens": np.array([-7], np.int32)}) == 0


APART = 0.015
"""Seconds between the requests of a test, less than the first answer takes; a busy machine may need another attempt."""


def test_requests_at_once_are_limited_and_a_higher_priority_begins_first(limited, long_answer):
    settings, _ = long_answer

    def ask(name, client, **more):
        status, text = post(limited, "generate", {**settings, "x-client": client} | more)
        ended.append((name, status, text))

    for attempt in range(8):
        threads, ended = [], []
        for name, priority in [("first", 0), ("low", -10), ("lower", -10), ("high", 10), ("refused", 10)]:
            client = f"{'b' if name == 'high' else 'a'}{attempt}"
            more = {"priority": priority, "max_tokens": 900 if name == "first" else 100}
            threads.append(threading.Thread(target=ask, args=(name, client), kwargs=more))
            threads[-1].start()
            time.sleep(APART)
        for thread in threads:
            thread.join(WAIT)
        order = [name for name, status, _ in ended if status == 200]
        refused = [text for _, status, text in ended if status in REFUSED]
        if order == ["first", "high", "low", "lower"] and len(refused) == 1:
            assert "3 requests of this client are running, the limit is 3" in refused[0]
            return
    pytest.fail(f"{ended}")
