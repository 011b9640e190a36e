"""Requests of every kind, drawn at random: good ones, wrong ones, garbage, and what becomes of each on its way."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlkv import POLICIES

WORDS = ("what", "is", "the", "type", "date", "total", "?", "name", "of", "this", "form")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "LA")
SIDE = 336
"""Of pictures that the shipped model takes; it resizes none."""
FATES = ("read", "stream", "leave early", "leave late", "slow", "deadline")
ODDS = (0.55, 0.2, 0.07, 0.07, 0.03, 0.08)


@dataclass
class Asked:
    """One request.

    Fields:
        prompt, pictures, settings: what is asked, by `Question`'s names.
        fate: what the client does.
        good: whether an answer must come; else an error may, of the client's making.
    """

    prompt: str
    pictures: list[bytes] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    fate: str = "read"
    good: bool = True


def picture(rng: np.random.Generator, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """A picture of any format and mode."""
    mode = str(rng.choice(MODES))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).convert(mode)
    image = image.resize(size, Image.Resampling.NEAREST)
    while True:
        kind, out = str(rng.choice(FORMATS)), io.BytesIO()
        try:
            options = {"progressive": bool(rng.integers(2))} if kind == "JPEG" else {}
            image.save(out, kind, **options)
            return out.getvalue()
        except (OSError, ValueError):  # not every format has every mode
            image = image.convert("RGB")


def garbage(rng: np.random.Generator) -> bytes:
    """What is no picture of the model's: noise, a damaged one, a header that promises a gigapixel, a wrong size."""
    kind = int(rng.integers(6))
    if kind == 0:
        return rng.bytes(int(rng.integers(1, 400)))
    if kind == 5:
        return picture(rng, (int(rng.integers(1, 90)), int(rng.integers(1, 90))))
    data = bytearray(picture(rng))
    if kind == 1:
        return bytes(data[: int(rng.integers(1, len(data)))])
    if kind == 2:
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        return bytes(data)
    if kind == 3:
        out = io.BytesIO()
        Image.new("1", (1, 1)).save(out, "PNG")
        data = bytearray(out.getvalue())
        data[16:24] = (40_000).to_bytes(4, "big") * 2
        return bytes(data)
    return b"%" * int(rng.integers(1, 5000)) + b" !"


def draw(rng: np.random.Generator) -> Asked:
    """One request."""
    policy = str(rng.choice(list(POLICIES)))
    words = int(rng.choice([1, 3, 10, 40, 90], p=[0.2, 0.4, 0.2, 0.15, 0.05]))
    asked = Asked(" ".join(rng.choice(WORDS, words)), fate=str(rng.choice(FATES, p=ODDS)))
    asked.settings = {"policy": policy, "max_new_tokens": int(rng.integers(1, 12))}
    if policy != "full":
        asked.settings["budget"] = float(rng.choice([0.05, 0.2, 1.0]))
    if rng.integers(3) == 0:
        asked.settings |= {
            "temperature": 2.0,
            "top_p": float(rng.uniform(0.1, 1)),
            "seed": int(rng.integers(99)),
        }
    if rng.integers(8) == 0:
        asked.settings["stop"] = ("a", "\n")
    for _ in range(int(rng.choice([0, 1, 2], p=[0.5, 0.45, 0.05]))):
        asked.pictures.append(picture(rng))
    if asked.fate in {"leave early", "leave late", "slow", "deadline"}:
        asked.settings |= {"max_new_tokens": 300, "temperature": 2.0, "seed": int(rng.integers(99))}
    wrong = int(rng.integers(40))
    if wrong < 4:
        asked.pictures.append(garbage(rng))
    elif wrong == 4:
        asked.prompt = "what " * 5000
    elif wrong == 5:
        name, value = (("budget", 3.0), ("temperature", -1.0), ("policy", "none"), ("top_p", 7.0))[
            int(rng.integers(4))
        ]
        asked.settings[name] = value
    asked.good = wrong > 5 and len(asked.pictures) < 2  # two fill all positions of the shipped model
    return asked


def chat(asked: Asked) -> dict[str, Any]:
    """The body of a chat completion."""
    given = dict(asked.settings)
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(one).decode()}"}}
        for one in asked.pictures
    ]
    content = [*parts, {"type": "text", "text": asked.prompt}]
    given["max_tokens"] = given.pop("max_new_tokens")
    stream = asked.fate != "read"
    return {**given, "messages": [{"role": "user", "content": content}], "stream": stream}


def triton(asked: Asked) -> dict[str, Any]:
    """The body of a request to Triton."""
    given = dict(asked.settings)
    given["max_tokens"] = given.pop("max_new_tokens")
    if "stop" in given:
        given["stop"] = list(given["stop"])
    if asked.pictures:
        given["images"] = [base64.b64encode(one).decode() for one in asked.pictures]
    if asked.fate == "deadline":
        given["timeout"] = 20_000
    return {**given, "prompt": asked.prompt, "stream": asked.fate not in {"read", "deadline"}}


@dataclass(frozen=True)
class Held:
    """What processes hold: threads, file descriptors, resident MiB."""

    threads: int
    files: int
    memory: int


def held(pids: list[int]) -> Held:
    """Of all these processes together."""
    threads = files = memory = 0
    for pid in pids:
        threads += len(list(Path(f"/proc/{pid}/task").iterdir()))
        files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        memory += pages * os.sysconf("SC_PAGE_SIZE") >> 20
    return Held(threads, files, memory)


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found
