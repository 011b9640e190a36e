"""Tuned native operators: a folder of `vlkv tune ENGINE`, whose library is taken by engine, processor and hashes.

`tuned.json` names one library per processor. What does not fit this engine, processor or installation is not loaded;
the installed operators then run. A library that is not the one that was judged is an `EngineError`.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from vlkv.errors import EngineError
from vlkv.ops.cores import cpu_facts
from vlkv.ops.native import native
from vlkv.storage.files import hash_file, reason, show
from vlkv.storage.manifest import NAME as MANIFEST

NAME = "tuned.json"
VERSION = 1


class Library(msgspec.Struct, frozen=True):
    """A library of a folder, and what it was made for: hashes are SHA-256 in hexadecimal.

    `operators` holds what was chosen for each operator, and its measured speedup.
    """

    file: str
    sha256: str
    processor: str
    sources: str
    operators: dict[str, Any]


class Record(msgspec.Struct, frozen=True):
    """`tuned.json`. `engine` is the hash of the engine's manifest; `off` takes the libraries out of use."""

    version: int
    engine: str
    libraries: tuple[Library, ...] = ()
    off: bool = False


@dataclass(frozen=True)
class Tuned:
    """Loaded operators: the library's path for ONNX Runtime, and the address of its table for `vlkv._native`."""

    path: Path
    address: int
    held: Any


def read(folder: Path) -> Record:
    """Reads `tuned.json`. Raises `EngineError`."""
    path = folder / NAME
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise EngineError(f"{show(path)}: {reason(error)}; vlkv tune ENGINE -o writes such folders") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from None
    if record.version != VERSION:
        raise EngineError(f"{show(path)} has version {record.version}; this vlkv reads {VERSION}; tune again")
    return record


def choose(folder: Path, engine: Path) -> tuple[Library | None, str]:
    """Returns the library for this engine, processor and installation, or None and why there is none."""
    record = read(folder)
    if record.off:
        return None, f"{show(folder)} is off"
    if hash_file(engine / MANIFEST) != record.engine:
        return None, f"{show(folder)} was tuned for another engine"
    if not record.libraries:
        return None, f"{show(folder)} has no faster version"
    fitting = [library for library in record.libraries if library.processor == processor()]
    if not fitting:
        return None, f"{show(folder)} was tuned on {record.libraries[0].processor}, this is {processor()}"
    if fitting[0].sources != sources_hash():
        return None, f"{show(folder)} was made from the operators of another version of vlkv"
    return fitting[0], ""


def load(folder: Path, engine: Path) -> Tuned | None:
    """Loads the library for this engine, or returns None. Raises `EngineError` for a changed file."""
    library, _ = choose(folder, engine)
    if library is None:
        return None
    path = folder / Path(library.file).name
    try:
        if hash_file(path) != library.sha256:
            raise EngineError(
                f"{show(path)} is not the file that {NAME} names; tune again, or delete the folder"
            )
        held = ctypes.CDLL(str(path.resolve()))
        table = ctypes.addressof(ctypes.c_char.in_dll(held, "vlkv_operators"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from None
    native().check_operators(table)
    return Tuned(path.resolve(), table, held)


def sources_folder() -> Path:
    """Returns the sources of the native operators, which are installed beside the extension."""
    return Path(native().__file__ or "").parent / "cpp"


@cache
def sources_hash() -> str:
    """Returns one hash of all sources, names included; it says which version of the operators is installed."""
    folder = sources_folder()
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def processor() -> str:
    """Returns the processor's name, as far as Linux tells it."""
    facts = cpu_facts()
    if not facts:
        return platform.machine()
    name = facts.get("model name", platform.machine())
    return f"{name} family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
