"""What a shared library would do before its function is called, and what it could keep between calls; read, not run."""

from __future__ import annotations

import struct

WRITABLE, ALLOCATED = 1, 2
LINKER_OWNED = (
    ".dynamic",
    ".got",
    ".got.plt",
    ".data.rel.ro",
    ".eh_frame",
    ".relro_padding",
    ".tm_clone_table",
)
RUNS_AT_LOAD = {12: "_init", 13: "_fini", 25: "a constructor", 26: "a destructor", 32: "a constructor"}
NEEDED = 1
LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
)
IFUNC = 10
SYMBOLS = 2
LOADER_WRITES = (".data.rel.ro", ".eh_frame")


def fault(data: bytes) -> str | None:
    """Returns why a library is refused, or None.

    Refused are code that runs at load, writable data (a function that keeps state could answer from memory), and other
    libraries than C's and C++'s.
    """
    try:
        return _fault(data)
    except (struct.error, UnicodeDecodeError, ValueError, IndexError):
        return "the library is no 64-bit ELF file"


def _fault(data: bytes) -> str | None:
    if data[:6] != b"\x7fELF\x02\x01":
        return "the library is no 64-bit ELF file"
    sections, strings = _sections(data)
    by_name = {}
    for section in sections:
        name = _text(data, strings + section[0])
        by_name[name] = section
        flags, length = section[2], section[5]
        if flags & WRITABLE and flags & ALLOCATED and length and name not in LINKER_OWNED:
            if "array" in name:
                return f"code runs at load ({name})"
            return f"it keeps {length} bytes of state between calls ({name}); constants are fine"
    if ".dynamic" in by_name:
        table, strings = by_name[".dynamic"], by_name[".dynstr"][4]
        for at in range(table[4], table[4] + table[5], 16):
            tag, value = struct.unpack_from("<qQ", data, at)
            if tag in RUNS_AT_LOAD:
                return f"code runs at load ({RUNS_AT_LOAD[tag]})"
            if tag == NEEDED and _text(data, strings + value) not in LIBRARIES:
                return f"it needs {_text(data, strings + value)}"
    if ".dynsym" in by_name:
        table = by_name[".dynsym"]
        for at in range(table[4], table[4] + table[5], 24):
            if data[at + 4] & 15 == IFUNC:
                return "code runs at load (an indirect function)"
    return None


def _sections(data: bytes) -> tuple[list[tuple[int, ...]], int]:
    """The section headers, and the place of their names."""
    offset, size, count, names = *struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HHH", data, 58)
    found = [struct.unpack_from("<IIQQQQIIQQ", data, offset + n * size) for n in range(count)]
    return found, found[names][4]


def writable(data: bytes) -> dict[str, int]:
    """Returns the bytes of an object file's writable sections by name, without tables that the loader writes."""
    found: dict[str, int] = {}
    sections, strings = _sections(data)
    for section in sections:
        name = _text(data, strings + section[0])
        if section[2] & WRITABLE and section[2] & ALLOCATED and not name.startswith(LOADER_WRITES):
            found[name] = found.get(name, 0) + section[5]
    return {name: length for name, length in found.items() if length}


def symbols(data: bytes) -> tuple[set[str], set[str]]:
    """Returns the names that an object file defines for others, and those that it needs. Both empty if it is none."""
    defined: set[str] = set()
    needed: set[str] = set()
    try:
        sections, _ = _sections(data)
        for section in sections:
            if section[1] != SYMBOLS:
                continue
            strings = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], 24):
                name, info, _, index = struct.unpack_from("<IBBH", data, at)
                if info >> 4 and name:
                    (defined if index else needed).add(_text(data, strings + name))
    except (struct.error, UnicodeDecodeError, ValueError, IndexError):
        return set(), set()
    return defined, needed


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
