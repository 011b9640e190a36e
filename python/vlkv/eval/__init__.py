"""What a policy costs in accuracy: tasks, metrics, runs that resume, tables, charts, pictures of what was kept."""

from vlkv.eval.api import Report, run

__all__ = ["Report", "run"]
