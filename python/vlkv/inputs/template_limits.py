"""Limits of time and memory for chat templates, which are untrusted programs.

Jinja's sandbox isolates a template from the interpreter but does not limit its time and memory. Here each iteration of
a loop and each call of a macro is a step; there are at most `STEPS`, within `SECONDS`, and operators make texts of at
most `CHARACTERS`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

STEPS = 1_000_000
SECONDS = 10.0
CHARACTERS = 1 << 24
LARGEST = 1_000_000
"""The largest number that a method or filter accepts, such as a width."""

_STEP, _JOIN = "_vlkv_step", "_vlkv_join"
_now = threading.local()
E = TypeVar("E", bound="SandboxedEnvironment")


@contextmanager
def counted() -> Iterator[None]:
    """Count the steps of one rendering from 0; a thread renders one template at a time."""
    _now.steps, _now.end = 0, monotonic() + SECONDS
    yield


def limited(base: type[E]) -> type[E]:
    """A subclass of the environment class with limits; exceeding one raises Jinja's `SecurityError`."""
    from jinja2 import nodes, pass_context
    from jinja2.exceptions import SecurityError

    @pass_context
    def step(_: object, value: object) -> object:
        _now.steps += 1
        if _now.steps > STEPS or monotonic() > _now.end:
            raise SecurityError(f"it takes over {STEPS} steps or {SECONDS:g} s: its loops do not end")
        return value

    def size(count: int) -> None:
        if count > CHARACTERS:
            raise SecurityError(f"it makes a text or list of {count} entries, the limit is {CHARACTERS}")

    @pass_context
    def join(_: object, values: list[object]) -> str:
        texts = [str(value) for value in values]
        size(sum(map(len, texts)))
        return "".join(texts)

    def numbers(values: Any) -> None:
        for value in values:
            if isinstance(value, int) and abs(value) > LARGEST:
                raise SecurityError(f"it asks for {value:.6g}, the limit is {LARGEST}")

    class Limited(base):  # type: ignore[misc,valid-type]
        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.filters[_STEP], self.filters[_JOIN] = step, join
            for name in ("center", "indent", "batch", "slice", "wordwrap", "truncate"):
                self.filters[name] = _checked(self.filters[name], numbers)

        def _parse(self, *arguments: Any) -> nodes.Template:
            tree: nodes.Template = super()._parse(*arguments)
            _rewritten(tree)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "*":
                for text, times in ((left, right), (right, left)):
                    if isinstance(text, str | list | tuple) and isinstance(times, int):
                        size(len(text) * times)
            elif operator == "+" and isinstance(left, str | list | tuple) and hasattr(right, "__len__"):
                size(len(left) + len(right))
            elif operator == "%" and isinstance(left, str):
                raise SecurityError("it formats with %, whose widths are not limited; use ~")
            if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
                bits = (
                    left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
                )
                size(bits // 64)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(getattr(function, "__self__", None), str):
                numbers((*arguments, *named.values()))
            return super().call(context, function, *arguments, **named)

    def _rewritten(tree: Any) -> None:
        """Insert a step at the beginning of each loop and macro body; replace `~` by a join with a limit."""
        for node in (*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)),):
            counting = nodes.Filter(nodes.Const(None), _STEP, [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(counting, lineno=node.lineno))
            if isinstance(node, nodes.For) and node.test is not None:
                passed = nodes.Filter(nodes.Const(True), _STEP, [], [], None, None, lineno=node.lineno)
                node.test = nodes.And(passed, node.test, lineno=node.lineno)
        _joined(tree)

    def _joined(node: Any) -> Any:
        for name, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, name, [_joined(one) if isinstance(one, nodes.Node) else one for one in value])
            elif isinstance(value, nodes.Node):
                setattr(node, name, _joined(value))
        if isinstance(node, nodes.Concat):
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(parts, _JOIN, [], [], None, None, lineno=node.lineno)
        return node

    return Limited


def _checked(filter_: Any, numbers: Any) -> Any:
    def checked(*arguments: Any, **named: Any) -> Any:
        numbers((*arguments, *named.values()))
        return filter_(*arguments, **named)

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(filter_, mark):
            setattr(checked, mark, getattr(filter_, mark))
    return checked
