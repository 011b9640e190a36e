"""A scheduler's counters on Triton's metrics endpoint."""

from __future__ import annotations

from typing import Any

from vlkv.scheduler import Stats
from vlkv.serving.counters import COUNTERS, GAUGES, REASONS


class Metrics:
    """The metrics of one model instance.

    Args:
        utils: Triton's `triton_python_backend_utils`.
        labels: the labels of every metric.
    """

    def __init__(self, utils: Any, labels: dict[str, str]) -> None:
        family = utils.MetricFamily
        self._families = []
        self._counters, self._gauges, self._reasons = {}, {}, {}
        self._last: dict[str, float] = {}
        for name, text in COUNTERS.items():
            made = family(name=f"vlkv_{name}_total", description=text, kind=family.COUNTER)
            self._families.append(made)
            self._counters[name] = made.Metric(labels=labels)
        for name, text in GAUGES.items():
            made = family(name=f"vlkv_{name}", description=text, kind=family.GAUGE)
            self._families.append(made)
            self._gauges[name] = made.Metric(labels=labels)
        made = family(
            name="vlkv_finished_total", description="Answers by finish reason.", kind=family.COUNTER
        )
        self._families.append(made)
        for reason in REASONS:
            self._reasons[reason] = made.Metric(labels={**labels, "reason": reason})

    def update(self, stats: Stats) -> None:
        """Updates the metrics to the counters."""
        for name, metric in self._counters.items():
            self._raise(metric, name, getattr(stats, name))
        for reason, metric in self._reasons.items():
            self._raise(metric, f"finished {reason}", stats.finished[reason])
        for name, metric in self._gauges.items():
            if self._last.get(name) != (value := getattr(stats, name)):
                self._last[name] = value
                metric.set(value)

    def restart(self) -> None:
        """The counters begin again at zero: those of a new scheduler. The metrics go on from where they are."""
        gauges = {name: value for name, value in self._last.items() if name in self._gauges}
        self._last = gauges

    def _raise(self, metric: Any, name: str, value: float) -> None:
        before = self._last.get(name, 0)
        if value > before:
            self._last[name] = value
            metric.increment(value - before)
