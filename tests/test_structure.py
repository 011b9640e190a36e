"""`docs/structure.md` names every existing module and folder and no others.

`python tests/test_structure.py` writes the page's lines of modules from their docstrings.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "structure.md"
PACKAGES = ("python/vlkv", "export/vlkv_export", "peers/vlkv_peers", "harness/vlkv_harness")
NATIVE = ("cpp", "plugin")
LINE = re.compile(r"^\| `([^`]+)` \| .+ \|$")


def there(room: str) -> set[str]:
    """Returns what a section has to name: modules of a package, or folders of native code."""
    folder = ROOT / room
    if room in NATIVE:
        files = [path for path in folder.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".inl"}]
        return {f"{path.parent.relative_to(folder).as_posix()}/" for path in files} - {"./"}
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if path.name != "__init__.py"
    }


def sections(text: str) -> dict[str, list[str]]:
    """Returns the lines under each `## ROOM:` heading."""
    parts = re.split(r"^## ([\w/]+): .*$", text, flags=re.MULTILINE)
    return {
        room: body.split("\n## ")[0].splitlines() for room, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def named(room: str, text: str) -> list[str]:
    return [match.group(1) for line in sections(text)[room] if (match := LINE.match(line))]


@pytest.mark.parametrize("room", PACKAGES + NATIVE)
def test_the_page_names_what_is_there(room):
    names = named(room, PAGE.read_text())
    assert len(names) == len(set(names)), "a name stands twice"
    assert set(names) == there(room), "python tests/test_structure.py updates the page"


def summary(path: Path) -> str:
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(text.split()).removesuffix(".").replace("|", "\\|")


def updated(text: str) -> str:
    for room in PACKAGES:
        fresh = {name: f"| `{name}` | {summary(ROOT / room / name)} |" for name in there(room)}
        head = f"## {room}: "
        start = text.index("|---|---|\n", text.index(head)) + len("|---|---|\n")
        end = text.index("\n\n", start - 1)
        text = text[:start] + "\n".join(fresh[name] for name in sorted(fresh)) + text[end:]
    return text


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
    sys.exit()
