"""TensorFlow Serving's metrics, names and buckets, in Prometheus's text format."""

from __future__ import annotations

import abc
import threading
from bisect import bisect_left
from collections.abc import Sequence

DEFAULT_PATH = "/monitoring/prometheus/metrics"
# Microseconds: 10 * 1.8^n, up to about 20 minutes; and for queues 100 * 1.2^n, up to about a second.
_BUCKETS = tuple(10 * 1.8**power for power in range(33))
_QUEUE_BUCKETS = tuple(100 * 1.2**power for power in range(52))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metric(abc.ABC):
    """A metric family: one sample for each combination of label values."""

    kind = ""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name = name.replace("/", ":")
        self.labels = tuple(labels)
        self.lock = threading.Lock()

    def _labelled(self, values: Sequence[str]) -> str:
        return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(self.labels, values, strict=True))

    @abc.abstractmethod
    def lines(self) -> list[str]:
        """The samples in Prometheus's text format."""


class Counter(Metric):
    """A counter, which only increases."""

    kind = "counter"

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        super().__init__(name, labels)
        self._values: dict[tuple[str, ...], int] = {}

    def increment(self, *values: str) -> None:
        """Add one for these label values."""
        with self.lock:
            self._values[values] = self._values.get(values, 0) + 1

    def lines(self) -> list[str]:
        """The samples in Prometheus's text format."""
        with self.lock:
            return [f"{self.name}{{{self._labelled(values)}}} {count}" for values, count in self._values.items()]


class Histogram(Metric):
    """A histogram: counts of observations by bucket, and their sum."""

    kind = "histogram"

    def __init__(self, name: str, labels: Sequence[str], buckets: Sequence[float] = _BUCKETS) -> None:
        super().__init__(name, labels)
        self._buckets = buckets
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, microseconds: float, *values: str) -> None:
        """Add one observation for these label values."""
        with self.lock:
            counts = self._counts.setdefault(values, [0] * (len(self._buckets) + 1))
            counts[bisect_left(self._buckets, microseconds)] += 1
            self._sums[values] = self._sums.get(values, 0.0) + microseconds

    def lines(self) -> list[str]:
        """The samples in Prometheus's text format."""
        result = []
        with self.lock:
            for values, counts in self._counts.items():
                labels, total = self._labelled(values), 0
                for limit, count in zip([*(f"{bucket:g}" for bucket in self._buckets), "+Inf"], counts, strict=True):
                    total += count
                    result.append(f'{self.name}_bucket{{{labels},le="{limit}"}} {total}')
                result.append(f"{self.name}_sum{{{labels}}} {self._sums[values]:g}")
                result.append(f"{self.name}_count{{{labels}}} {total}")
        return result


class Metrics:
    """The metrics that an operator's dashboards and alerts use."""

    def __init__(self) -> None:
        self.requests = Counter("/tensorflow/serving/request_count", ("model_name", "status"))
        self.request_latency = Histogram("/tensorflow/serving/request_latency", ("model_name", "API", "entrypoint"))
        self.runtime_latency = Histogram("/tensorflow/serving/runtime_latency", ("model_name", "API", "runtime"))
        self.warmup_latency = Histogram("/tensorflow/serving/model_warmup_latency", ("model_path", "status"))
        self.queuing_latency = Histogram(
            "/tensorflow/serving/batching_session/queuing_latency", ("thread_pool_name",), _QUEUE_BUCKETS
        )
        self.wrapped_run_count = Counter("/tensorflow/serving/batching_session/wrapped_run_count", ())

    def page(self) -> str:
        """All metrics in Prometheus's text format."""
        lines = []
        for metric in (
            self.warmup_latency, self.requests, self.request_latency, self.runtime_latency, self.queuing_latency,
            self.wrapped_run_count,
        ):  # fmt: skip
            lines += [f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"
