"""`vlkv`: the commands of this package, and those of `vlkv_export` if it is installed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Annotated, Any, cast

import typer

from vlkv.cli.console import VERBOSITY, answers, whole_output
from vlkv.errors import VlkvError
from vlkv.storage.files import reason, show

GROUP = "vlkv.commands"
PACKAGES = ("onnxruntime", "tokenizers", "numpy", "pillow", "onnx", "onnx-ir", "onnxscript")
BACKENDS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
    "cuda": ("cuda-bindings",),
}
"""The packages of each backend other than ONNX Runtime, and of the device that they share."""
BAD_INPUT = 2
INTERRUPTED = 130

WRONG_USE = cast(
    type[Exception], next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
)
"""The exceptions that typer raises for an invalid command line: click's, or those of typer's own copy of click."""

app = typer.Typer(
    name="vlkv",
    help="Vision-language models with a tenth of the KV cache.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print results only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print details.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and backends.")] = False,
) -> None:
    """Vision-language models with a tenth of the KV cache."""
    VERBOSITY.level = -1 if quiet else int(verbose)
    if show_version:
        print_versions()
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help())
        raise typer.Exit(BAD_INPUT)


def print_versions() -> None:
    """Prints one line for vlkv, for each package, for the operators, and for each backend."""
    out = answers()
    out.print(f"vlkv {version('vlkv')}")
    for package in PACKAGES:
        out.print(f"  {package} {_version(package) or 'not installed'}")
    from vlkv.ops.native import describe

    out.print(f"  operators: {describe()}")
    for line in backends():
        out.print(f"  {line}")


def backends() -> list[str]:
    """One line per backend: whether its packages are installed.

    The packages are not imported, because TensorRT's runtime ends a process on a machine without a GPU.
    """
    import onnxruntime

    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    lines = [f"backend onnxruntime: {providers}"]
    for backend, packages in BACKENDS.items():
        found = [f"{package} {known}" for package in packages if (known := _version(package))]
        lines.append(f"backend {backend}: {', '.join(found) or 'not installed'}")
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _add_commands() -> None:
    from vlkv.cli.bench import bench
    from vlkv.cli.eval import evaluate
    from vlkv.cli.inspect import inspect
    from vlkv.cli.load import load
    from vlkv.cli.policies import policies
    from vlkv.cli.run import run
    from vlkv.cli.serve import serve
    from vlkv.cli.triton import triton
    from vlkv.cli.tune import tune

    for command in (run, policies, evaluate, inspect, serve, triton, load, bench, tune):
        app.command("eval" if command is evaluate else command.__name__)(command)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            app.command(entry.name)(entry.load())
        except ImportError as error:
            any_use = {"allow_extra_args": True, "ignore_unknown_options": True}
            app.command(entry.name, context_settings=any_use)(_missing(entry.name, error))


def _missing(name: str, error: ImportError) -> Callable[[], None]:
    text = f"vlkv {name} needs the packages of vlkv[export]: {error}"

    def command() -> None:
        raise VlkvError(text)

    command.__doc__ = "Not installed: vlkv[export]."
    return command


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. A user's mistake, or an error of the system, is one line on standard error and code 2.

    SIGTERM and SIGHUP end it like Ctrl-C: no incomplete file is left behind.
    """
    try:
        with _ended_by_signals(), whole_output():
            _add_commands()
            code = app(arguments, standalone_mode=False) or 0
        sys.exit(code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except WRONG_USE as error:
        fail(getattr(error, "format_message", error.__str__)())
    except VlkvError as error:
        fail(str(error))
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        fail(f"{show(os.fsdecode(error.filename))}: {reason(error)}" if error.filename else reason(error))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Makes terminating signals unwind the program first; ignored signals, as under nohup, stay ignored."""
    before: dict[int, Any] = {}

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(text: str) -> None:
    """Prints the line and ends with exit code 2."""
    line = " ".join(text.split())
    sys.stderr.write(f"vlkv: {line}\n")
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
