"""Requests with pictures go to the scheduler by threads of their own; none is lost, whatever happens there."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from vlkv.errors import ServerFullError
from vlkv.serving.limits import Running
from vlkv.serving.triton import admission
from vlkv.serving.triton.admission import MOST, THREADS, Admission, Asked

WAIT = 60
PICTURE = {"images": np.array([b"a picture"], np.object_)}


class Model:
    """Submits slowly; keeps what came."""

    def __init__(self):
        self.allowed, self.taken, self.refused = threading.Event(), [], []
        self.admission = Admission(
            self.submit, lambda asked, error: self.refused.append((asked.sender, error))
        )

    def submit(self, asked):
        deadline, sender = asked.deadline, asked.sender
        if "images" in asked.tensors and sender != "late":
            self.allowed.wait(WAIT)
        if sender == "die":
            raise SystemExit
        self.taken.append((sender, deadline))

    def count(self, count):
        end = time.monotonic() + WAIT
        while len(self.taken) + len(self.refused) < count and time.monotonic() < end:
            time.sleep(0.001)


def test_text_passes_pictures_and_deadlines_go_on():
    model = Model()
    for number in range(4):
        model.admission.admit(Asked(PICTURE, 10.0, number, Running(0)))
    model.admission.admit(Asked({}, 5.0, "text", Running(0)))
    model.admission.admit(Asked(PICTURE, -1.0, "late", Running(0)))
    assert model.taken == [("text", 5.0), ("late", -1.0)]
    time.sleep(0.02)
    model.allowed.set()
    model.count(6)
    assert sorted(sender for sender, _ in model.taken[2:]) == [0, 1, 2, 3]
    assert all(9 < deadline < 9.99 for sender, deadline in model.taken[4:] if sender in {2, 3})
    assert len([one for one in threading.enumerate() if one.name == "vlkv-pictures"]) == THREADS
    model.admission.close(WAIT)
    assert not [one for one in threading.enumerate() if one.name == "vlkv-pictures"]


def test_too_many_are_refused_and_closing_refuses_those_that_wait():
    model = Model()
    with pytest.raises(ServerFullError, match="wait to be decoded"):
        for number in range(MOST + THREADS + 1):
            model.admission.admit(Asked(PICTURE, None, number, Running(0)))
    closing = threading.Thread(target=model.admission.close, args=(WAIT,))
    closing.start()
    while not model.admission._ending:
        time.sleep(0.001)
    model.allowed.set()
    closing.join(WAIT)
    assert len(model.taken) + len(model.refused) >= MOST
    assert {type(error) for _, error in model.refused} == {ServerFullError}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_answers_its_request_and_is_replaced():
    model = Model()
    model.allowed.set()
    for number in range(2 * THREADS):
        model.admission.admit(Asked(PICTURE, None, "die", Running(0)))
        model.count(number + 1)
    model.admission.admit(Asked(PICTURE, None, "fine", Running(0)))
    model.count(2 * THREADS + 1)
    assert [sender for sender, _ in model.refused] == ["die"] * 2 * THREADS
    assert model.taken == [("fine", None)]
    model.admission.close(WAIT)


def test_the_files_of_waiting_pictures_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(admission, "MOST_BYTES", 3 * len(PICTURE["images"][0]))
    model = Model()
    with pytest.raises(
        ServerFullError, match="files of waiting pictures take 27 bytes, these 9, the limit is 27"
    ):
        for number in range(THREADS + 4):
            model.admission.admit(Asked(PICTURE, None, number, Running(0)))
    model.allowed.set()
    model.count(3)
    assert len(model.taken) == 3
    end = time.monotonic() + WAIT
    while model.admission._held and time.monotonic() < end:
        time.sleep(0.001)
    model.admission.admit(Asked(PICTURE, None, "again", Running(0)))
    model.count(4)
    model.admission.close(WAIT)
    assert len(model.taken) == 4
