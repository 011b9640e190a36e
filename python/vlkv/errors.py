"""The types of errors. Each is a mistake in the user's input, described in one line.

The command line prints the line and exits with code 2; in Python they are `ValueError`s.
"""

from reprlib import Repr

LONGEST = 1000
"""Characters of an error's text: it names the value, and a caller's value may have any length."""


class VlkvError(ValueError):
    """Base of all errors that vlkv raises for invalid input.

    A text of more than `LONGEST` characters loses its middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class CheckpointError(VlkvError):
    """A checkpoint that is missing, damaged, or of an unsupported architecture."""


class EngineError(VlkvError):
    """A graph or engine directory that is missing, damaged, changed, or of another format version."""


class ImageError(VlkvError):
    """A picture that can't be read, or is too large."""


class PromptError(VlkvError):
    """A prompt that is empty, too long, or does not match its pictures."""


class PolicyError(VlkvError):
    """An unknown policy, or a budget or field outside its range."""


class SamplingError(VlkvError):
    """A sampling setting outside its range."""


class OperatorError(VlkvError):
    """An operator's array of a wrong rank, size or dtype. The text begins with `[operator]`."""


class EvalError(VlkvError):
    """An invalid task, number of samples, folder of data, or directory of results."""


class MemoryLimitError(VlkvError):
    """A request, or settings, that need more than the stated memory."""


class ServerFullError(VlkvError):
    """Too many requests wait, or the server accepts no more; the same request may succeed later."""


class ServerStoppedError(VlkvError):
    """A thread of the server has ended by an error: what it held is lost, and no request is answered any more."""


class LimitError(VlkvError):
    """A client that is at a limit of its own.

    Attributes:
        limit: what is limited, `requests` or `tokens`.
        wait: seconds until the same request may succeed; None if it never can.
    """

    def __init__(self, text: str, limit: str, wait: int | None) -> None:
        super().__init__(text)
        self.limit, self.wait = limit, wait


class BenchError(VlkvError):
    """A benchmark that can't run as requested, or a peer that fails."""


class TuneError(VlkvError):
    """A harness, source or setting that can't be tuned, or a machine without the sandbox that tuning needs."""


class _Short(Repr):
    """A value's beginning, in a time that does not grow with the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print whole numbers of thousands of digits."""
        return repr(x) if x.bit_length() < 256 else f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


def quoted(value: object) -> str:
    """A caller's value as an error shows it: printable ASCII, at most about 80 characters."""
    try:
        return f"{_SHORT.repr(value).encode('ascii', 'backslashreplace').decode():.100}"
    except Exception:
        return f"a {type(value).__name__}"
