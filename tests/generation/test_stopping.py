"""Stop texts in streamed text, however it is split into pieces, and the reasons for the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlkv.generation.stopping import Stopping, StopTexts


class Words:
    """A detokenizer with one text per token. It holds back `late` texts by one token."""

    def __init__(self, texts: list[str], late: bool = False) -> None:
        self.texts, self.late, self.held = texts, late, ""

    def push(self, token: int) -> str:
        text = self.held + self.texts[token]
        self.held = text[-1:] if self.late else ""
        return text[: len(text) - len(self.held)]

    def finish(self) -> str:
        held, self.held = self.held, ""
        return held


def expected(text: str, stop: list[str]) -> str:
    """Cuts where the first stop text is complete, searching one character at a time."""
    for end in range(1, len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=10),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_pieces_do_not_matter(pieces: list[str], stop: list[str]) -> None:
    texts = StopTexts(stop)
    shown = ""
    whole = "".join(pieces)
    for number, piece in enumerate(pieces):
        shown += texts.push(piece)
        sure = expected("".join(pieces[: number + 1]), stop)
        assert sure.startswith(shown)
        if not texts.stopped:
            held = sure[len(shown) :]
            assert held == "" or any(word.startswith(held) for word in stop), "held without need"
    shown += texts.finish()
    assert shown == expected(whole, stop)
    assert texts.stopped == any(word in whole for word in stop)


def test_a_stop_text_over_three_tokens() -> None:
    stopping = Stopping(Words(["Yes", " En", "d of", " it", "!"]), {9}, ("End of it",), 99)
    assert [stopping.push(token) for token in (0, 1, 2)] == ["Yes", " ", ""]
    assert stopping.finish_reason is None
    assert stopping.push(3) == ""
    assert stopping.finish_reason == "stop"
    with pytest.raises(RuntimeError):
        stopping.push(4)


def test_held_text_comes_when_it_was_no_stop_text() -> None:
    stopping = Stopping(Words(["\n", "\nQ", "A"]), {9}, ("\n\n\n",), 99)
    assert [stopping.push(token) for token in (0, 1, 2)] == ["", "\n\nQ", "A"]


@pytest.mark.parametrize("late", [False, True])
def test_eos_has_no_text_and_flushes(late: bool) -> None:
    stopping = Stopping(Words(["ab#", "x"], late), {7, 8}, ("##",), 99)
    shown = stopping.push(0)
    assert shown == "ab"
    assert stopping.push(8) == "#"
    assert stopping.finish_reason == "stop"
    assert stopping.tokens == 2


@pytest.mark.parametrize("late", [False, True])
def test_length(late: bool) -> None:
    stopping = Stopping(Words(["ab", "c#"], late), {7}, ("##",), 3)
    pieces = [stopping.push(token) for token in (0, 0, 1)]
    assert "".join(pieces) == "ababc#"
    assert stopping.finish_reason == "length"
    assert stopping.tokens == 3


@pytest.mark.parametrize(("last", "text"), [(7, ""), (1, "")])
@pytest.mark.parametrize("late", [False, True])
def test_stop_wins_over_length_on_the_last_token(last: int, text: str, late: bool) -> None:
    stopping = Stopping(Words(["a", "##"], late), {7}, ("##",), 2)
    pieces = [stopping.push(0), stopping.push(last)]
    assert "".join(pieces) == "a" + text
    assert stopping.finish_reason == "stop"


def test_a_stop_text_completed_by_held_text() -> None:
    stopping = Stopping(Words(["a#", "#"], late=True), {7}, ("##",), 9)
    assert stopping.push(0) + stopping.push(1) + stopping.push(7) == "a"
    assert stopping.finish_reason == "stop"


def test_many_long_stop_texts_cost_no_more_than_one() -> None:
    """The automaton takes at most two steps per character on average, whatever the stop texts are."""
    text = "ab" * 2000
    for stop in (["abc"], [f"{'ab' * 100}{number:05}" for number in range(300)]):
        texts = StopTexts(stop)
        steps = 0

        class Counted(list):  # type: ignore[type-arg]
            def __getitem__(self, index):  # type: ignore[no-untyped-def]
                nonlocal steps
                steps += 1
                return super().__getitem__(index)

        texts._next = Counted(texts._next)
        assert (texts.push(text) + texts.finish()) == text
        assert steps <= 4 * len(text)


def test_a_stop_text_inside_another() -> None:
    texts = StopTexts(["abcd", "bc", "c"])
    assert texts.push("xab") == "x"
    assert texts.push("cd") == "a"
    assert texts.stopped
