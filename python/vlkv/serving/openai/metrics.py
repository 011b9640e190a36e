"""A scheduler's counters and the times of answers in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vlkv.scheduler import Stats, Ticket
from vlkv.serving.counters import COUNTERS, GAUGES, REASONS

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

TIMES = (
    ("time_to_first_token", "From the request to its first token.", FIRST),
    ("time_per_output_token", "A token after the first.", TOKEN),
    ("request", "From the request to the end of the answer.", WHOLE),
)


class _Scheduler(Collector):
    """Collects the counters on each request for metrics."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """See `prometheus_client`."""
        stats = self._stats()
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"vlkv_{name}", text, value=getattr(stats, name))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"vlkv_{name}", text, value=getattr(stats, name))
        ends = CounterMetricFamily("vlkv_finished", "Answers by how they ended.", labels=["reason"])
        for reason in REASONS:
            ends.add_metric([reason], stats.finished[reason])
        yield ends


class Metrics:
    """The metrics of one server.

    Args:
        stats: the scheduler's counters.
    """

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Scheduler(stats))
        first, token, whole = (
            Histogram(f"vlkv_{name}_seconds", text, buckets=buckets, registry=self._registry)
            for name, text, buckets in TIMES
        )
        self._first, self._token, self._whole = first, token, whole
        self._requests = Counter(
            "vlkv_http_requests",
            "HTTP requests by path and status.",
            ["path", "status"],
            registry=self._registry,
        )

    def request(self, path: str, status: int) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()

    def answered(self, ticket: Ticket) -> None:
        """Records the times of an answer that has ended."""
        first, ended, count = ticket.first_token, ticket.ended, len(ticket.result.token_ids)
        if ended is None or ticket.error is not None:
            return
        self._whole.observe(ended - ticket.submitted)
        if first is None:
            return
        self._first.observe(first - ticket.submitted)
        if count > 1:
            self._token.observe((ended - first) / (count - 1))

    def text(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)
