"""Numbers for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from .store import Row

if TYPE_CHECKING:
    from .service import Service


class Metrics:
    """What `GET /metrics` tells: requests by model and status, samples, what waits."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "aitk_requests", "Finished requests", ("model", "status"), registry=self._registry
        )
        self._samples = Counter(
            "aitk_samples", "Pictures and clips drawn", ("model",), registry=self._registry
        )
        self._seconds = Counter(
            "aitk_sample_seconds", "Seconds spent on them", ("model",), registry=self._registry
        )
        waiting = Gauge("aitk_requests_waiting", "Requests that wait", registry=self._registry)
        waiting.set_function(lambda: len(service.queue))
        loads = Gauge("aitk_model_loads", "How often weights were read", registry=self._registry)
        loads.set_function(lambda: service.engine.loads)
        self._weights = Gauge("aitk_weight_bytes", "Weights in memory", registry=self._registry)
        self._weight_bytes = service.engine.weight_bytes

    def count(self, row: Row) -> None:
        """Counts a request that is finished."""
        model = row.request["model"]
        self._requests.labels(model, row.status).inc()
        for output in row.outputs or ():
            self._samples.labels(model).inc()
            self._seconds.labels(model).inc(output["info"]["seconds"])

    def weigh(self) -> None:
        """Notes what is in memory, while nothing is read into it."""
        self._weights.set(self._weight_bytes())

    def text(self) -> bytes:
        """All numbers in Prometheus's text format."""
        return generate_latest(self._registry)
