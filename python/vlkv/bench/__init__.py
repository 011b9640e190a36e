"""`vlkv bench`: latency of an engine with full and compressed cache, beside its byte floor and other programs."""

from vlkv.bench.api import Report, run
from vlkv.bench.settings import Budget, Settings

__all__ = ["Budget", "Report", "Settings", "run"]
