"""Numbers of one process for Prometheus: GET /metrics.

| name (`llasa_…`) | type | labels |
|---|---|---|
| `http_requests_total` | counter | `route` (its template, never a client's text), `method`, `status` |
| `first_byte_seconds` | histogram | `format`; from a request's arrival to its first audio |
| `speech_ended_total` | counter | `reason`: of `SpeechService.ended` |
| `audio_seconds_total`, `codes_total`, `steps_total` | counter | |
| `running`, `waiting`, `batch_places`, `streams`, `ready` | gauge | |

With `workers=N` each scrape finds one of the N processes, whichever takes the connection; to watch all of them run
replicas with a port each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from llasa.serving.service import SpeechService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 80)


class Metrics:
    """Of one app; two in a process do not mix."""

    def __init__(self, service: SpeechService) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "llasa_http_requests", "Answered requests.", ["route", "method", "status"], registry=self._registry
        )
        self._first_byte = Histogram(
            "llasa_first_byte_seconds",
            "From a request's arrival to its first audio.",
            ["format"],
            buckets=FIRST_BYTE_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_OfService(service))

    def answered(self, route: str | None, method: str, status: int) -> None:
        """Count a request. ``route``: its template; none = there is none at the address."""
        method = method if method in METHODS else "other"  # a client may invent any
        self._requests.labels(route or "none", method, str(status)).inc()

    def began(self, format: str, seconds: float) -> None:
        """The first audio of a request, so long after it came."""
        self._first_byte.labels(format).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfService(Collector):
    """Reads the service when it is asked."""

    def __init__(self, service: SpeechService) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # so that registering asks nothing of a service that has not started

    def collect(self) -> Iterator[Metric]:
        service = self._service
        yield GaugeMetricFamily("llasa_ready", "1 = it can speak.", value=int(service.ready))
        yield GaugeMetricFamily("llasa_running", "Requests with a place in the batch.", value=service.num_running)
        yield GaugeMetricFamily("llasa_waiting", "Requests that wait for a place.", value=service.num_waiting)
        yield GaugeMetricFamily("llasa_streams", "Requests that are spoken or read.", value=service.num_streams)
        yield GaugeMetricFamily("llasa_batch_places", "Places of the batch.", value=service.batch_size)
        yield CounterMetricFamily("llasa_audio_seconds", "Speech made.", value=service.audio_seconds)
        yield CounterMetricFamily("llasa_codes", "Codes generated.", value=service.num_codes)
        yield CounterMetricFamily("llasa_steps", "Steps of the batch.", value=service.num_steps)
        ended = CounterMetricFamily("llasa_speech_ended", "Requests that ended, by why.", labels=["reason"])
        for reason, count in sorted(service.ended.items()):
            ended.add_metric([reason], count)
        yield ended
