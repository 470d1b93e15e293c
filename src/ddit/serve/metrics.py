"""Figures about the server, in Prometheus' form."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ddit.serve.engine import Engine
from ddit.serve.jobs import BatchReport

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Counters of one server, in their own registry, so that a process may hold several servers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter("ddit_requests", "Requests answered", ["route", "status"], registry=here)
        self.request_seconds = Histogram(
            "ddit_request_seconds",
            "From a request's head to its answer's end",
            ["route"],
            buckets=SECONDS,
            registry=here,
        )
        self.rejected = Counter("ddit_rejected", "Requests refused because the queue was full", registry=here)
        self.in_flight = Gauge("ddit_requests_in_flight", "Requests that are being answered", registry=here)
        self.batch_size = Histogram(
            "ddit_batch_size", "Jobs in one call of the model", ["verb"], buckets=BATCHES, registry=here
        )
        self.batch_seconds = Histogram(
            "ddit_batch_seconds",
            "Duration of one call of the model",
            ["verb"],
            buckets=SECONDS,
            registry=here,
        )
        self.steps = Counter("ddit_model_passes", "Sampling steps of batches", ["verb"], registry=here)
        self.jobs = Counter("ddit_jobs", "Images and texts generated", ["verb"], registry=here)
        self.waiting = Gauge("ddit_jobs_waiting", "Jobs in the queue", registry=here)
        self.running = Gauge("ddit_jobs_running", "Jobs in the model", registry=here)

    def watch(self, engine: Engine) -> None:
        """Makes an engine report its batches here."""
        engine.on_batch = self.count_batch
        self.waiting.set_function(_count(lambda: engine.num_waiting))
        self.running.set_function(_count(lambda: engine.num_running))

    def count_batch(self, report: BatchReport) -> None:
        self.batch_size.labels(report.verb).observe(report.size)
        self.batch_seconds.labels(report.verb).observe(report.seconds)
        self.steps.labels(report.verb).inc(report.num_steps)
        self.jobs.labels(report.verb).inc(report.size)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if status == 429:
            self.rejected.inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


def _count(read: Callable[[], int]) -> Callable[[], float]:
    return lambda: float(read())
