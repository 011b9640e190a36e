"""Limits of time and memory for chat templates, which are untrusted programs.

Jinja's sandbox isolates a template from the interpreter but does not limit its time and memory. Here each iteration of
a loop and each call of a macro is a step; there are at most `STEPS`, within `SECONDS`. No value grows beyond the limits
of `vlkv.inputs.template_bounds`, and all values together have at most `TOTAL` characters and entries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from vlkv.inputs.template_bounds import TooLargeError, made, operation, size, weight

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

STEPS = 1_000_000
SECONDS = 10.0
TOTAL = 1 << 29
"""Characters and entries of all values that one rendering makes."""
SLOW = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters for web pages, whose time or result has no simple limit."""

_STEP, _JOIN, _VALUE = "_vlkv_step", "_vlkv_join", "_vlkv_value"
_now = threading.local()
E = TypeVar("E", bound="SandboxedEnvironment")


@contextmanager
def counted() -> Iterator[None]:
    """Count the steps of one rendering from 0; a thread renders one template at a time."""
    _now.steps, _now.made, _now.end = 0, 0, monotonic() + SECONDS
    yield


def _check() -> None:
    if _now.steps > STEPS or monotonic() > _now.end:
        raise TooLargeError(f"it takes over {STEPS} steps or {SECONDS:g} s: its loops do not end")
    size(_now.made, TOTAL)


def _counted(value: Any) -> Any:
    """The value, after what it holds was counted."""
    if isinstance(value, str | bytes | list | tuple | dict):
        _now.made += weight(value)
        _check()
    return value


def limited(base: type[E]) -> type[E]:
    """A subclass of the environment class with limits; exceeding one raises `TooLargeError`."""
    from jinja2 import nodes, pass_context

    @pass_context
    def step(_: object, value: object) -> object:
        _now.steps += 1
        _check()
        return value

    @pass_context
    def counted_value(_: object, value: object) -> object:
        return _counted(value)

    def joined(values: Iterable[object]) -> str:
        texts, total = [], 0
        for value in values:
            texts.append(str(value))
            total += len(texts[-1])
            size(total)
        text: str = _counted("".join(texts))
        return text

    @pass_context
    def join(_: object, values: list[object]) -> str:
        return joined(values)

    class Limited(base):  # type: ignore[misc,valid-type]
        intercepted_binops = frozenset(["*", "**", "+", "%"])
        concat = staticmethod(joined)

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            for name in SLOW:
                del self.filters[name]
            self.limit_filters(*self.filters)
            self.filters |= {_STEP: step, _JOIN: join, _VALUE: counted_value}

        def limit_filters(self, *names: str) -> None:
            for name in names:
                self.filters[name] = _bounded(name, self.filters[name])

        def _parse(self, *arguments: Any) -> nodes.Template:
            tree: nodes.Template = super()._parse(*arguments)
            _rewritten(tree)
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            operation(operator, left, right)
            return _counted(super().call_binop(context, operator, left, right))

        def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
            method = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
            own = getattr(method, "__self__", None)
            if isinstance(own, str | bytes | int):
                made(method.__name__, own, *arguments, **named)
            return _counted(super().call(context, function, *arguments, **named))

    def _rewritten(tree: Any) -> None:
        """Insert a step at the beginning of each loop and macro body, and count what `~`, lists and objects make."""
        for node in (*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)),):
            counting = nodes.Filter(nodes.Const(None), _STEP, [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(counting, lineno=node.lineno))
            if isinstance(node, nodes.For) and node.test is not None:
                passed = nodes.Filter(nodes.Const(True), _STEP, [], [], None, None, lineno=node.lineno)
                node.test = nodes.And(passed, node.test, lineno=node.lineno)
        _replaced(tree)

    def _replaced(node: Any) -> Any:
        for name, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, name, [_replaced(one) if isinstance(one, nodes.Node) else one for one in value])
            elif isinstance(value, nodes.Node):
                setattr(node, name, _replaced(value))
        if isinstance(node, nodes.Concat):
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(parts, _JOIN, [], [], None, None, lineno=node.lineno)
        if isinstance(node, nodes.List | nodes.Dict) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        ):
            return nodes.Filter(node, _VALUE, [], [], None, None, lineno=node.lineno)
        return node

    return Limited


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with its result known to be within the limits before it runs, and counted behind it."""
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # the context stands before the value

    def bounded(*arguments: Any, **named: Any) -> Any:
        made(name, *arguments[first:], **named)
        return _counted(filter_(*arguments, **named))

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(filter_, mark):
            setattr(bounded, mark, getattr(filter_, mark))
    return bounded
