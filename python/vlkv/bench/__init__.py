"""`vlkv bench`: latency of an engine, full cache and compressed, beside its byte floor and beside other programs."""

from vlkv.bench.api import Report, run
from vlkv.bench.settings import Budget, Settings

__all__ = ["Budget", "Report", "Settings", "run"]
