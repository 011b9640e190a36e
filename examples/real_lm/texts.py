"""Real text: English prose and code that every Python has, and chats that are written here."""

from __future__ import annotations

import importlib
import inspect
from pydoc_data.topics import topics

PROSE = ("assignment", "class", "execmodel", "exceptions", "naming", "operator-summary", "types")
CODE = ("argparse", "calendar", "csv", "fractions", "heapq", "shlex", "statistics", "tarfile", "textwrap")

_CHATS = (
    (
        (
            "How do I keep basil alive on a windowsill?",
            "Give it six hours of light a day, water it when the top of the soil is dry, and pinch "
            "off the tips so that it grows bushy. Do not let it flower: the leaves turn bitter.",
        ),
        (
            "The leaves are yellow at the bottom.",
            "That is most often too much water. Let the pot drain, wait until the soil is dry a "
            "finger deep, and move the plant to a warmer place. A few old yellow leaves are normal.",
        ),
        (
            "Can I use it in soup?",
            "Yes. Add the leaves at the end, as heat takes their smell away. Tomato soup with basil, "
            "a little garlic and olive oil is a classic. You can freeze what is left in ice cubes "
            "with water.",
        ),
        (
            "How long does it keep in the fridge?",
            "About five days. Wrap the stems in a damp paper towel, put them in an open bag, and "
            "keep them away from the coldest part of the fridge, because basil turns black below 4 "
            "degrees.",
        ),
    ),
    (
        (
            "What is the difference between a list and a tuple in Python?",
            "A list can be changed after it was made; a tuple can not. Use a list for a number of "
            "things of the same kind, and a tuple for a record of fixed length.",
        ),
        (
            "Show me an example.",
            "Here is one:\n\n    point = (3, 4)\n    names = ['Ada', 'Grace']\n    "
            "names.append('Alan')\n\nThe last line changes the list. `point.append(5)` would raise "
            "an AttributeError, as tuples have no append.",
        ),
        (
            "Which one is faster?",
            "Making a tuple of constants is faster, because Python builds it once when it compiles "
            "the code. Reading an item takes the same time in both. Choose by meaning first: speed "
            "rarely matters here.",
        ),
        (
            "Can a tuple be a key of a dictionary?",
            "Yes, if all of its items can be hashed. `{(0, 0): 'origin'}` works. A list can not be a "
            "key, since its hash would change when the list does.",
        ),
    ),
)


def texts() -> dict[str, list[str]]:
    """Returns the texts by kind."""
    chat = "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for turns in _CHATS
        for question, answer in turns
    )
    code = [inspect.getsource(importlib.import_module(name)) for name in CODE]
    return {"prose": [topics[name] for name in PROSE], "code": code, "chat": [chat]}
