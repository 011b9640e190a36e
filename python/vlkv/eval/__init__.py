"""The accuracy of policies: tasks, metrics, resumable runs, tables, charts, and maps of kept patches."""

from vlkv.eval.api import Report, run

__all__ = ["Report", "run"]
