"""What can go wrong, as types. Every one of them is a mistake in what was given, told in one line.

The command line prints the line and exits with 2; in Python they are `ValueError`s.
"""


class VlkvError(ValueError):
    """Base of all errors that vlkv raises for what a user gave it."""


class CheckpointError(VlkvError):
    """A checkpoint that is missing, damaged, or of an architecture that is not supported."""


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
    """An operator's array of a wrong rank, size or dtype. The text opens with `[operator]`."""


class EvalError(VlkvError):
    """A task, a number of samples, a folder of data, or a directory of results that can't be used."""


class MemoryLimitError(VlkvError):
    """A request, or settings, that the stated memory does not hold."""


class ServerFullError(VlkvError):
    """Too many requests wait already, or none is taken any more; the same request may do later."""


class ServerStoppedError(VlkvError):
    """A thread of the server has ended by an error: what it held is lost, and no request is answered any more."""


class BenchError(VlkvError):
    """A benchmark that can't be run as asked, or a peer that can't."""
