"""Who may ask: API keys, and pages of other origins."""

from __future__ import annotations

import pytest

from vlkv.serving.openai.app import Settings, make_app

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "type?"}], "max_tokens": 1}
HERE, THERE = "http://here.example", "http://there.example"


@pytest.fixture(scope="module")
def client_of(opened):
    from starlette.testclient import TestClient

    with opened.scheduler(slots=2, memory=32 << 20) as scheduler:
        yield lambda **settings: TestClient(make_app(opened, scheduler, Settings(**settings), lambda: None))


@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer wrong", "Bearer onetwo", "Basic one", "one", "Bearer \xe9"]
)
def test_a_missing_or_wrong_key_is_refused_in_openais_form(client_of, given):
    client = client_of(api_keys=("one", "two"))
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for reply in (client.post(CHAT, json=ASKED, headers=headers), client.get("/v1/models", headers=headers)):
        assert reply.status_code == 401
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("given", ["Bearer one", "bearer two", "Bearer  one "])
def test_each_key_opens(client_of, given):
    reply = client_of(api_keys=("one", "two")).post(CHAT, json=ASKED, headers={"Authorization": given})
    assert reply.status_code == 200, reply.text


def test_pages_of_other_origins_are_answered_only_if_named(client_of):
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    name = "access-control-allow-origin"
    closed = client_of()
    assert name not in closed.post(CHAT, json=ASKED, headers={"Origin": HERE}).headers
    refused = closed.options(CHAT, headers={"Origin": HERE} | asks)
    assert refused.status_code == 405 and name not in refused.headers and refused.json()["error"]
    opened = client_of(origins=(HERE,), api_keys=("one",))
    before = opened.options(CHAT, headers={"Origin": HERE} | asks)  # a browser sends no key here
    assert before.status_code == 200 and before.headers[name] == HERE
    assert opened.options(CHAT, headers={"Origin": THERE} | asks).status_code == 400
    told = opened.post(CHAT, json=ASKED, headers={"Origin": HERE})
    assert told.status_code == 401 and told.headers[name] == HERE, "the page may read what was wrong"
    assert name not in opened.post(CHAT, json=ASKED, headers={"Origin": THERE}).headers
