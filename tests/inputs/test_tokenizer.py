"""Tokenizers of the kinds that checkpoints use. Streamed text equals the text that is decoded as a whole."""

import json
import random
import threading
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vlkv.errors import PromptError
from vlkv.inputs.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
CORPUS = [
    "the total is 42 euros",
    "a picture of a café, naïve: 10 €",
    "what is the name?\nASSISTANT: Zoë 日本",
] * 5
KINDS = ("byte-level", "byte-fallback", "characters", "words", "pieces", "suffixes", "metaspace")


def _trained_fallback() -> tokenizers.Tokenizer:
    """Builds a tokenizer like that of Llama 2 and LLaVA 1.5: BPE over ▁, with byte tokens for unknown text."""
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    first = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    first.normalizer = marks
    first.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(first.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(pair) for pair in model["merges"]]
    built = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    built.normalizer = marks
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return built


def _levels(words: list[str]) -> models.WordLevel:
    return models.WordLevel(
        {word: number for number, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"
    )


def backend(kind: str) -> tokenizers.Tokenizer:
    if kind == "byte-level":
        built = tokenizers.Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
        )
        built.train_from_iterator(CORPUS, trainer)
    elif kind == "byte-fallback":
        built = _trained_fallback()
    elif kind == "characters":
        built = tokenizers.Tokenizer(_levels(sorted(set("".join(CORPUS)))))
        built.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        built.decoder = decoders.Fuse()
    elif kind == "words":
        built = tokenizers.Tokenizer(_levels(["a", "b", "total", "."]))
        built.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "pieces":
        vocab = {
            word: number for number, word in enumerate([*SPECIAL, "don", "'", "t", "##a", "##b", ".", "x"])
        }
        built = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
        built.decoder = decoders.WordPiece()
    elif kind == "suffixes":
        built = tokenizers.Tokenizer(_levels(["a</w>", "b", "c</w>"]))
        built.decoder = decoders.BPEDecoder()
    else:
        built = tokenizers.Tokenizer(_levels(["▁a", "▁", "b", "▁▁b"]))
        built.decoder = decoders.Metaspace()
    built.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    built.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", built.token_to_id("<s>"))]
    )
    return built


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(backend(kind), {"bos_token": "<s>", "eos_token": "</s>"})


def _alphabet() -> dict[str, int]:
    """The byte of each character of byte-level tokenizers' alphabet (that of GPT-2)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + at): byte for at, byte in enumerate(others)}


def streamed(kind: str, ids: list[int]) -> list[str]:
    detokenizer = tokenizer(kind).detokenizer()
    return [*map(detokenizer.push, ids), detokenizer.finish()]


def whole(kind: str, ids: list[int]) -> str:
    """Decodes the ids after each run of byte tokens is joined as UTF-8, with U+FFFD for wrong bytes."""
    subject = tokenizer(kind)
    byte_of = subject._byte_ids
    mended: list[int] = []
    run = b""
    for index in [*(index for index in ids if not subject.is_silent(index)), -1]:
        if index in byte_of:
            run += bytes([byte_of[index]])
            continue
        mended += (subject.token_id(f"<0x{byte:02X}>") or 0 for byte in run.decode(errors="replace").encode())
        run = b""
        mended += [index] * (index >= 0)
    return subject.decode(mended)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_equal_the_whole(kind: str, data: st.DataObject) -> None:
    size = tokenizer(kind)._backend.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size), max_size=90))
    assert "".join(streamed(kind, ids)) == whole(kind, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_long_answers_of_any_ids(kind: str) -> None:
    size = tokenizer(kind)._backend.get_vocab_size()
    for seed in range(10):
        print(f"seed {seed}")
        chance = random.Random(seed)
        favoured = [chance.randrange(size) for _ in range(chance.choice([1, 3, 30]))]
        ids = [
            chance.choice(favoured) if chance.random() < 0.8 else chance.randrange(size) for _ in range(500)
        ]
        assert "".join(streamed(kind, ids)) == whole(kind, ids)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(max_examples=120, deadline=None)
@given(text=st.text(max_size=60) | st.text("aé€😀 日 ", max_size=60))
def test_pieces_of_a_text_are_whole_characters(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    pieces = streamed(kind, ids)
    assert "".join(pieces) == tokenizer(kind).decode(ids)
    if "\ufffd" not in text and not any(special in text for special in SPECIAL):
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == text


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(max_examples=60, deadline=None)
@given(text=st.text("aé€😀 日\n~\u00a1", max_size=30))
def test_the_bytes_of_tokens_are_those_of_the_text(kind: str, text: str) -> None:
    subject = tokenizer(kind)
    ids = subject.encode(text, add_special_tokens=False)
    joined = b"".join(map(subject.token_bytes, ids)).decode()
    assert joined in {text, f" {text}"}, "some put a blank before each text"


def test_the_bytes_of_special_tokens_and_of_no_token() -> None:
    subject = tokenizer("byte-level")
    special = subject.token_id(SPECIAL[1]) or 0
    assert subject.token_bytes(special) == subject.token_bytes(10**6) == b""
    assert subject.piece(special) == SPECIAL[1] and subject.piece(10**6) == ""
    accent = subject.encode("é", add_special_tokens=False)[0]
    assert subject.piece(accent) == ("é" if subject.token_bytes(accent) == "é".encode() else "Ã")


def test_text_comes_as_soon_as_it_is_complete() -> None:
    ids = tokenizer("byte-level").encode("a 😀 b", add_special_tokens=False)
    detokenizer = tokenizer("byte-level").detokenizer()
    shown = ""
    for number in range(1, len(ids) + 1):
        shown += detokenizer.push(ids[number - 1])
        assert shown == tokenizer("byte-level").decode(ids[:number]).rstrip("\ufffd")
    assert detokenizer.finish() == ""


def test_bytes_are_shown_as_soon_as_they_are_a_character() -> None:
    def byte(*values: int) -> list[int]:
        return [tokenizer("byte-fallback").token_id(f"<0x{value:02X}>") or 0 for value in values]

    the = tokenizer("byte-fallback").token_id("▁the")
    assert the is not None
    euro = byte(*"€".encode())
    assert streamed("byte-fallback", [*euro, the]) == ["", "", "€", " the", ""]
    assert streamed("byte-fallback", [*euro, euro[0], the]) == ["", "", "€", "", "\ufffd the", ""]
    assert streamed("byte-fallback", byte(10, 10, 0xE2, 10, 0x41)) == ["\n", "\n", "", "\ufffd\n", "A", ""]
    assert streamed("byte-fallback", [the, *byte(10, 0xE2)]) == ["the", "\n", "", "\ufffd"]


def test_a_special_tokens_text_is_its_id() -> None:
    subject = tokenizer("byte-fallback")
    assert subject.special_ids(["</s>", "the", "<pad>", "nothing", ""]) == {2, 3}
    assert subject.special_ids(["<unk>"]) == {0}
    assert subject.special_ids(["</s>\n", " <pad>", "\n", "</ s>"]) == {2, 3}


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("wrong", [b"\x80", b"\xe4", b"\xf0\x9f\x98", b"\xff\xe4\xb8"])
def test_bytes_that_never_become_characters_are_shown_and_cost_no_more_each_step(
    kind: str, wrong: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, longest = tokenizer(kind), 0
    alphabet = {byte: char for char, byte in _alphabet().items()}
    names = [f"<0x{byte:02X}>" if kind == "byte-fallback" else alphabet[byte] for byte in wrong * 100]
    ids = [subject.token_id(name) or 0 for name in names]
    decode = Tokenizer.decode

    def watched(self: Tokenizer, ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(self, ids)

    monkeypatch.setattr(Tokenizer, "decode", watched)
    detokenizer, shown = subject.detokenizer(), b""
    for number, index in enumerate(ids, 1):
        shown += detokenizer.push(index).encode()
        want = (wrong * 100)[:number].decode(errors="replace")
        assert want.startswith(shown.decode()) and len(want) - len(shown.decode()) <= 2
    assert shown.decode() + detokenizer.finish() == (wrong * 100).decode(errors="replace")
    assert longest <= 100  # a wrong byte is three bytes of U+FFFD


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "characters"])
def test_a_step_does_not_decode_the_whole_answer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    decode = Tokenizer.decode

    def watched(self: Tokenizer, ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(self, ids)

    ids = tokenizer(kind).encode("the total is 42 euros " * 100, add_special_tokens=False)
    whole = tokenizer(kind).decode(ids)
    monkeypatch.setattr(Tokenizer, "decode", watched)
    assert "".join(streamed(kind, ids)) == whole
    assert longest <= 40


def test_special_tokens_are_read_and_not_shown() -> None:
    subject = tokenizer("byte-fallback")
    ids = subject.encode("the</s>")
    assert ids == [1, subject.token_id("▁the"), 2]
    assert subject.encode("the", add_special_tokens=False) == [subject.token_id("▁the")]
    assert subject.decode(ids) == "the"
    assert "".join(streamed("byte-fallback", ids)) == "the"


@pytest.mark.parametrize("text", ["a\ud800b", "\ud83d"])
def test_lone_surrogates_are_told(text: str) -> None:
    with pytest.raises(PromptError, match=rf"character {len(text) // 2} is the lone surrogate U\+D"):
        tokenizer("byte-level").encode(text)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("text", ["the total is 42 euros. " * 45_000, "a" * 1_000_000])
def test_a_megabyte(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)
    assert tokenizer(kind).decode(ids) == text


def test_text_is_cut_where_pictures_are_spliced_in() -> None:
    """Each piece begins as a text of its own does, whatever a tokenizer does behind its added tokens."""
    built = backend("metaspace")
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    subject = Tokenizer(built, {}, "[picture]")
    pieces = [built.encode(text, add_special_tokens=False).ids for text in ("a", "b", "")]
    bos = built.token_to_id("<s>")
    assert subject.encode("a[picture]b[picture]") == [bos, *pieces[0], -200, *pieces[1], -200]
    assert subject.encode("[picture]b", add_special_tokens=False) == [-200, *pieces[1]]
    assert subject.encode("a") == [bos, *pieces[0]]
    assert Tokenizer(built, {}).encode("a") == [bos, *pieces[0]]


def test_other_threads_run_while_a_long_text_is_tokenised():
    ticks, ended, text = [0], threading.Event(), "the total is 42 " * 20_000
    found = tokenizer("byte-level")

    def tick():
        while not ended.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = ticks[0]
        ids = found.encode(text)
        during = ticks[0] - before
    finally:
        ended.set()
        thread.join()
    assert len(ids) > 20_000
    assert during > 5, "a call that holds the interpreter leaves one or two"
