"""`docs/extending`: every named file exists, lines have a fixed form, and registries match the pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "extending"
KINDS = {"model", "policy", "prune", "operator", "backend", "frontend", "pass"}
LINE = re.compile(r"^- (new|edit|registry): `([^`]+)`: \S.*$")


def test_there_is_a_page_for_each_kind():
    assert {path.stem for path in PAGES.glob("*.md")} == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_files_of_a_page_are_there(kind):
    lines = [line for line in (PAGES / f"{kind}.md").read_text().splitlines() if line.startswith("- ")]
    found = [LINE.match(line) for line in lines]
    assert found and all(found), "a line is not `- new|edit|registry: `FILE`: what`"
    for name in (match.group(2) for match in found if match):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize(
    ("folder", "entry", "registered"),
    [("text", "MODEL", "TEXT_MODELS"), ("towers", "TOWER", "TOWERS"), ("families", "FAMILY", "FAMILIES")],
)
def test_a_model_is_one_file_and_one_line(folder, entry, registered):
    """The registry names exactly the modules that export an entry. Helpers such as `decoder.py` export none."""
    from vlkv_export.models import registry

    modules = (ROOT / "export/vlkv_export/models" / folder).glob("*.py")
    files = {path.stem for path in modules if re.search(rf"^{entry}\b.* = ", path.read_text(), re.MULTILINE)}
    text = Path(registry.__file__).read_text()
    (entries,) = re.findall(rf"^{registered}:.*?\{{(.*?)\}}", text, re.MULTILINE | re.DOTALL)
    assert set(re.findall(rf"(\w+)\.{entry}", entries)) == files


def test_each_operator_has_its_header_definition_and_oracle():
    from vlkv_export.ops import library

    text = Path(library.__file__).read_text()
    for operator in ("score", "evict"):
        assert operator in text
        for place in (f"export/vlkv_export/ops/{operator}.py", f"cpp/include/vlkv/{operator}.h"):
            assert (ROOT / place).is_file()


PASS_HELPERS = {"__init__", "edit", "products"}


@pytest.mark.parametrize(
    "name",
    sorted({path.stem for path in (ROOT / "export/vlkv_export/passes").glob("*.py")} - PASS_HELPERS),
)
def test_each_pass_keeps_the_contract(name):
    """One public function, `apply(model, *, options) -> int`, that says where it applies and what it counts."""
    module = ast.parse((ROOT / f"export/vlkv_export/passes/{name}.py").read_text())
    public = [n for n in module.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"]
    assert [node.name for node in public] == ["apply"]
    (apply,) = public
    assert [argument.arg for argument in apply.args.args] == ["model"]
    assert ast.unparse(apply.returns) == "int"
    described = ast.get_docstring(apply) or ""
    assert "\nApplies to: " in described and "\nReturns:\n    The number of " in described


def test_a_policy_is_one_entry_of_its_registry():
    from vlkv.policies.builtin import POLICIES

    text = (ROOT / "python/vlkv/policies/builtin.py").read_text()
    assert re.findall(r'\bPolicy\(\s*"([\w-]+)"', text) == list(POLICIES)
    described = (ROOT / "docs/policies.md").read_text()
    for name in POLICIES:
        assert f"`{name}`" in described, f"docs/policies.md does not name {name}"


def test_each_backend_is_registered():
    """The registry names exactly the modules of `backend/` that open engines."""
    from vlkv.backend.registry import BACKENDS

    modules = (ROOT / "python/vlkv/backend").glob("*.py")
    files = {path.stem for path in modules if "\ndef open_backend(" in path.read_text()}
    assert {name.rsplit(".", 1)[1] for name in BACKENDS.values()} == files - {"registry"}
