"""The texts of the task `text`: prose, code, short chats, and documents with a question.

Prose is Python's language reference (`pydoc_data.topics`) and code is its standard library, which every machine has;
chats and questions about documents are written here. The tokens after a prompt are the text's own; after a chat or a
document they are the model's answer with the full cache.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlkv.errors import EvalError
from vlkv.eval.tasks import SEEDS

CHARACTERS = 7000  # length of a text: enough for its prompt and the tokens after it
PROSE_TOKENS, DOCUMENT_TOKENS = 1200, 1100  # length of a prompt
DEFAULT_SAMPLES, MAX_SAMPLES = 12, 24

_MODULES = """
argparse ast asyncio.base_events calendar cmd codecs configparser copy csv dataclasses difflib doctest email.message
enum fractions ftplib functools gettext gzip heapq http.client http.cookiejar imaplib inspect ipaddress json.decoder
locale logging mailbox mimetypes multiprocessing.pool optparse pdb pickle pickletools platform plistlib poplib pprint
profile random sched selectors shelve shlex shutil smtplib socketserver sqlite3.dump statistics string subprocess
tarfile tempfile textwrap threading timeit tokenize trace traceback turtle unittest.case unittest.mock urllib.parse
urllib.request uuid wave weakref xml.dom.minidom xmlrpc.client zipapp
"""
MODULES = _MODULES.split()

CHATS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "List five fruits that are red.",
    "How do I boil an egg?",
    "What is the difference between a list and a tuple in Python?",
    "Give me three tips for sleeping better.",
    "Who wrote Romeo and Juliet, and what is it about?",
    "Write a Python function that adds two numbers.",
    "What should I pack for a week of hiking in the mountains?",
    "Explain what a hash table is.",
    "Describe a day in the life of a baker.",
    "How does a bicycle stay upright?",
    "What are the planets of the solar system, from the sun outwards?",
    "Write a polite e-mail that asks for a day off.",
    "Why do leaves change colour in autumn?",
    "Tell me a short story about a dog and a river.",
    "What is the greenhouse effect?",
    "How many days has a leap year, and why?",
    "Summarize the story of the tortoise and the hare.",
    "What does an engine do in a car?",
    "Name three rivers in Europe and a city on each.",
    "How can I learn to play the guitar?",
    "Explain to a child what electricity is.",
)
ABOUT = (
    "What is the text above about? Answer in two sentences.",
    "Summarize the text above.",
    "What are the most important points of the text above?",
    "Explain the text above to a beginner.",
)


@dataclass(frozen=True)
class Text:
    """One text.

    Fields:
        number: its number, from 0, over all kinds.
        kind: one of `KINDS`.
        tokens: the number of prompt tokens to take from `body`; 0 for all.
        body: the text itself.
        asked: the question about it, for the chat template; None to continue the body itself.
    """

    number: int
    kind: str
    tokens: int
    body: str
    asked: str | None


def _prose(rng: np.random.Generator, count: int) -> list[str]:
    from pydoc_data.topics import topics

    pieces = [
        text[start : start + CHARACTERS]
        for _, text in sorted(topics.items())
        for start in range(0, len(text) - CHARACTERS + 1, CHARACTERS)
    ]
    return [pieces[choice] for choice in rng.permutation(len(pieces))[:count]]


def _code(rng: np.random.Generator, count: int) -> list[str]:
    found: list[str] = []
    for choice in rng.permutation(len(MODULES)):
        if len(found) == count:
            break
        spec = importlib.util.find_spec(MODULES[choice])
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        text = Path(spec.origin).read_text(encoding="utf-8")
        start = text.find("\n", len(text) // 3) + 1  # after licence and imports
        if len(text) - start >= CHARACTERS:
            found.append(text[start : start + CHARACTERS])
    return found


def _make_prose(rng: np.random.Generator, count: int) -> list[tuple[int, str, str | None]]:
    return [(PROSE_TOKENS, text, None) for text in _prose(rng, count)]


def _make_code(rng: np.random.Generator, count: int) -> list[tuple[int, str, str | None]]:
    return [(PROSE_TOKENS, text, None) for text in _code(rng, count)]


def _make_chat(rng: np.random.Generator, count: int) -> list[tuple[int, str, str | None]]:
    return [(0, "", CHATS[choice]) for choice in rng.permutation(len(CHATS))[:count]]


def _make_document(rng: np.random.Generator, count: int) -> list[tuple[int, str, str | None]]:
    return [
        (DOCUMENT_TOKENS, text, ABOUT[number % len(ABOUT)]) for number, text in enumerate(_prose(rng, count))
    ]


KINDS: dict[str, Callable[[np.random.Generator, int], list[tuple[int, str, str | None]]]] = {
    "prose": _make_prose,
    "code": _make_code,
    "chat": _make_chat,
    "document": _make_document,
}


def make_texts(count: int | None, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> list[Text]:
    """Makes `count` texts of each kind, None for 12; equal seeds and Python versions give equal texts.

    Raises:
        EvalError: a number is out of range.
    """
    count = DEFAULT_SAMPLES if count is None else count
    if not 1 <= count <= MAX_SAMPLES:
        raise EvalError(f"{count} texts of each kind are outside 1 to {MAX_SAMPLES}")
    if not 0 <= seed < SEEDS:
        raise EvalError(f"seed {seed} is outside 0 to {SEEDS - 1}")
    texts: list[Text] = []
    for number, kind in enumerate(kinds):
        made = KINDS[kind](np.random.default_rng([seed, number]), count)
        texts += [Text(len(texts) + index, kind, *parts) for index, parts in enumerate(made)]
    return texts
