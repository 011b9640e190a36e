"""Continuous batching: many requests at once over a fixed number of lanes. `Engine.scheduler` makes a scheduler."""

from vlkv.scheduler.plan import Plan
from vlkv.scheduler.scheduler import Scheduler
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket

__all__ = ["Plan", "Scheduler", "Stats", "Ticket"]
