"""The responses that the model sends, counted and in order.

Triton's module exists only in Triton's processes, so a recorder replaces it. `test_server.py` uses the real one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vlkv.errors import ServerFullError
from vlkv.scheduler import Ticket
from vlkv.serving.triton.exchange import ASKED, Exchange


class Sender:
    """Records what is sent: values by name, and whether it was the last response."""

    def __init__(self, gone=False):
        self.sent, self.gone, self.asked = [], gone, 0

    def send(self, response, flags):
        self.sent.append((response, bool(flags)))

    def is_cancelled(self):
        self.asked += 1
        return self.gone


def response(tensors=(), error=None):
    return {name: array[0].decode() for name, array in tensors} if error is None else error


@pytest.fixture
def exchange():
    utils = SimpleNamespace(
        Tensor=lambda name, array: (name, array),
        InferenceResponse=response,
        TritonError=lambda text, code: (code, text),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    utils.Logger = SimpleNamespace(log_error=lambda text: None, log_verbose=lambda text: None)
    utils.TritonError.INTERNAL, utils.TritonError.UNAVAILABLE = "internal", "unavailable"
    return Exchange(utils, lambda: None)


def ended(exchange):
    exchange.start()
    exchange.close()


def test_pieces_that_wait_go_as_one_response_each_answer(exchange):
    tickets, senders = [Ticket() for _ in range(3)], [Sender() for _ in range(3)]
    for ticket, sender in zip(tickets, senders, strict=True):
        exchange.follow(ticket, sender, stream=True)
    for round_ in range(4):
        for number, ticket in enumerate(tickets):
            ticket.push(f"{number}.{round_} ")
    tickets[1].end("cancelled")
    ended(exchange)
    assert senders[0].sent == [({"text": "0.0 0.1 0.2 0.3 "}, False)]
    assert senders[2].sent == [({"text": "2.0 2.1 2.2 2.3 "}, False)]
    ((values, last),) = senders[1].sent
    assert (values["text"], values["finish_reason"], last) == ("1.0 1.1 1.2 1.3 ", "cancelled", True)


def test_an_answer_that_is_not_streamed_is_one_response_and_wakes_no_one_before(exchange):
    ticket, sender = Ticket(), Sender()
    exchange.follow(ticket, sender, stream=False)
    for piece in "abc":
        ticket.push(piece)
        ticket.result.text += piece
    assert exchange._wait(0.0) == []
    ticket.end("stop")
    ended(exchange)
    ((values, last),) = sender.sent
    assert (values["text"], last) == ("abc", True)


def test_an_error_is_the_only_word_and_others_go_on(exchange):
    failed, fine = (Ticket(), Sender()), (Ticket(), Sender())
    for ticket, sender in (failed, fine):
        exchange.follow(ticket, sender, stream=False)
    failed[0].end(error=ServerFullError("full"))
    fine[0].end("stop")
    ended(exchange)
    assert failed[1].sent == [(("unavailable", "full"), True)]
    assert fine[1].sent[0][0]["finish_reason"] == "stop"


def test_an_answer_is_counted_before_its_end_is_told(exchange):
    ticket, sender, counted = Ticket(), Sender(), []
    exchange._tick = lambda: counted.append(len(sender.sent))
    exchange.follow(ticket, sender, stream=True)
    ticket.end("stop")
    ended(exchange)
    assert (counted[0], len(sender.sent)) == (0, 1)


def test_each_is_asked_by_turns_whether_its_client_has_gone(exchange):
    count = 2 * ASKED + 3
    open_ = [(Ticket(), Sender(gone=number == count - 1)) for number in range(count)]
    for ticket, sender in open_:
        exchange.follow(ticket, sender, stream=True)
    exchange._look()
    assert [sender.asked for _, sender in open_] == [1] * ASKED + [0] * (count - ASKED)
    assert not any(ticket.over(0.0) for ticket, _ in open_)
    exchange._look()
    exchange._look()
    again = 3 * ASKED - count
    assert [sender.asked for _, sender in open_] == [2] * again + [1] * (count - again)
    assert [ticket.over(0.0) for ticket, _ in open_].index("cancelled") == count - 1


def test_an_answer_that_cannot_be_sent_is_lost_alone(exchange, monkeypatch):
    bad, fine = (Ticket(), Sender()), (Ticket(), Sender())
    for ticket, sender in (bad, fine):
        exchange.follow(ticket, sender, stream=False)
    bad[0].result.text = None  # no text: its response can't be made
    for ticket, _ in (bad, fine):
        ticket.end("stop")
    ended(exchange)
    ((error, last),) = bad[1].sent
    assert error[0] == "internal" and last
    assert fine[1].sent[0][0]["finish_reason"] == "stop"


def test_metrics_that_fail_lose_no_answer(exchange):
    ticket, sender = Ticket(), Sender()

    def broken():
        raise RuntimeError("no metrics")

    exchange._tick = broken
    exchange.follow(ticket, sender, stream=True)
    ticket.end("stop")
    ended(exchange)
    assert len(sender.sent) == 1
    exchange._look()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_the_sending_thread_is_told_to_all(exchange, monkeypatch):
    before, later = (Ticket(), Sender()), (Ticket(), Sender())
    exchange.follow(*before, stream=True)

    def death(*_):
        raise SystemError("a bug")

    monkeypatch.setattr(exchange, "_wait", death)
    exchange.start()
    exchange.join(60)
    exchange.follow(*later, stream=True)
    for ticket, sender in (before, later):
        ((error, last),) = sender.sent
        assert error == ("internal", "the sending thread has stopped by an error: a bug") and last
        assert ticket.over(0.0) == "cancelled"
    assert exchange.close(1)


def test_closing_has_a_limit_and_ends_what_is_left(exchange):
    ticket, sender = Ticket(), Sender()
    exchange.follow(ticket, sender, stream=True)
    exchange.start()
    assert exchange.close(60, ServerFullError("the server has shut down"))
    assert sender.sent == [(("unavailable", "the server has shut down"), True)]
