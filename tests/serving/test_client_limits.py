"""Limits of each client: requests at once, and a bucket of tokens that fills over a minute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vlkv.errors import LimitError
from vlkv.serving import limits
from vlkv.serving.limits import ClientLimits, Clients


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def answer(clock, prompt=0, generated=0, done=True):
    result = SimpleNamespace(prompt_tokens=prompt, token_ids=[0] * generated)
    return SimpleNamespace(done=done, ended=clock.now if done else None, result=result)


def test_requests_at_once_are_those_whose_answers_have_not_ended():
    clock = Clock()
    clients = Clients(ClientLimits(requests=2), clock)
    first, second = clients.begin("a", 10**9), clients.begin("a", 1)
    with pytest.raises(LimitError, match="2 requests of this API key are running, the limit is 2") as found:
        clients.begin("a", 1)
    assert (found.value.limit, found.value.wait) == ("requests", 1)
    clients.begin("b", 1)
    first.tickets = [answer(clock), answer(clock, done=False)]
    with pytest.raises(LimitError):
        clients.begin("a", 1)
    first.tickets = [answer(clock)] * 2
    third = clients.begin("a", 1)
    with pytest.raises(LimitError):
        clients.begin("a", 1)
    second.tickets = []  # it was refused and has no answers
    third.tickets = []
    clients.begin("a", 1), clients.begin("a", 1)


def test_tokens_are_taken_at_the_start_and_settled_at_the_end():
    clock = Clock()
    clients = Clients(ClientLimits(tokens=600), clock)
    one = clients.begin("a", 500)
    with pytest.raises(LimitError, match=r"150 new tokens .* try again in 5 s") as found:
        clients.begin("a", 150)  # 100 are left, ten come a second
    assert (found.value.limit, found.value.wait) == ("tokens", 5)
    clock.now += 5
    two = clients.begin("a", 150)
    one.tickets = [answer(clock, prompt=300, generated=20)]  # 180 fewer than it took
    two.tickets = [answer(clock, prompt=10, generated=140)]
    clients.begin("a", 180).tickets = []
    clients.begin("b", 600)
    with pytest.raises(LimitError) as found:
        clients.begin("a", 181)
    assert found.value.wait == 1


def test_a_long_prompt_leaves_debts_that_are_paid_as_of_its_end():
    clock = Clock()
    clients = Clients(ClientLimits(tokens=600), clock)
    clients.begin("a", 100).tickets = [answer(clock, prompt=1500, generated=100)]
    with pytest.raises(LimitError) as found:
        clients.begin("a", 1)
    assert found.value.wait == 101  # 1000 are owed, and one more is wanted
    other = clients.begin("b", 100)
    other.tickets = [answer(clock, prompt=500)]
    clock.now += 3600
    clients.begin("b", 600)  # what ended an hour ago was paid an hour ago
    with pytest.raises(LimitError, match="601 new tokens, the limit of one API key is 600") as found:
        clients.begin("a", 601)
    assert found.value.wait is None


def test_without_limits_nothing_is_kept_of_a_client():
    clients = Clients(ClientLimits(), Clock())
    for number in range(1000):
        assert clients.begin(f"key {number}", 10**9).tokens == 10**9
    assert not clients._clients


def test_clients_that_are_as_new_ones_are_forgotten(monkeypatch):
    monkeypatch.setattr(limits, "MANY", 4)
    clock = Clock()
    clients = Clients(ClientLimits(tokens=600), clock, "client")
    debtor, running = clients.begin("debtor", 600), clients.begin("running", 1)
    debtor.tickets = [answer(clock, generated=600)]
    for number in range(20):
        clients.begin(str(number), 1).tickets = []
    assert set(clients._clients) >= {"debtor", "running"}
    assert len(clients._clients) < 8
    with pytest.raises(LimitError, match="left of this client's 600 tokens"):
        clients.begin("debtor", 1)
    clock.now += 60
    for number in range(20):
        clients.begin(str(number), 1).tickets = []
    assert "debtor" not in clients._clients
    assert running.tickets is None
    assert "running" in clients._clients
