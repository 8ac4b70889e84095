"""Counters of a server, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentrag.memory.live import Health, ShardHealth

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Histogram:
    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def observe(self, value: float) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """Counters and histograms; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[Labels, _Histogram]] = defaultdict(dict)

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name][tuple(sorted(labels.items()))] += by

    def observe(self, name: str, value: float, bounds: Sequence[float], **labels: str) -> None:
        """Add to a histogram, whose upper bounds are always the same."""
        with self._lock:
            found = self._histograms[name].setdefault(tuple(sorted(labels.items())), _Histogram(bounds))
            found.observe(value)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of them, and the gauges given, as Prometheus reads them."""
        lines: list[str] = []
        with self._lock:
            for name, series in sorted(self._counters.items()):
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{_braces(labels)} {value:.15g}" for labels, value in sorted(series.items())]
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE {name} histogram")
                for labels, histogram in sorted(histograms.items(), key=lambda item: item[0]):
                    lines += _buckets(name, labels, histogram)
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {value:.15g}"]
        return "\n".join(lines) + "\n"


def text_of(health: Health) -> str:
    """A memory's shards as Prometheus reads them; nothing where it has none."""
    lines: list[str] = []
    for name, (kind, value_of) in _OF_SHARDS.items():
        values = [(each.shard, value_of(each)) for each in health.shards]
        known = [(shard, value) for shard, value in values if value is not None]
        if known:
            lines.append(f"# TYPE {name} {kind}")
            lines += [f"{name}{_braces((('shard', str(shard)),))} {value:.15g}" for shard, value in known]
    return "".join(f"{line}\n" for line in lines)


_OF_SHARDS: Mapping[str, tuple[str, Callable[[ShardHealth], float | None]]] = {
    "latentrag_shard_passages": ("gauge", lambda shard: shard.rows),
    "latentrag_shard_replicas": ("gauge", lambda shard: shard.replicas),
    "latentrag_shard_replicas_there": ("gauge", lambda shard: shard.there),
    "latentrag_shard_replicas_ready": ("gauge", lambda shard: shard.ready),
    "latentrag_shard_failed_tries_total": ("counter", lambda shard: shard.failed_tries),
    "latentrag_shard_search_seconds": ("gauge", lambda shard: shard.search_seconds),
}


def _buckets(name: str, labels: Labels, histogram: _Histogram) -> list[str]:
    lines, below = [], 0
    for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        below += count
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_braces((*labels, ('le', le)))} {below}")
    return [*lines, f"{name}_sum{_braces(labels)} {histogram.total:.15g}", f"{name}_count{_braces(labels)} {below}"]


def _braces(labels: Labels) -> str:
    """Values are names of ours: paths, methods, numbers."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
