"""The same application as a Ray Serve deployment: replicas, on one machine or many, behind Ray's proxy.

Each replica batches with its own engine and not with `ray.serve.batch`: that batches the calls of one method whatever
they ask for, and gives each a whole result; the engine groups jobs by kind, takes those of a request together, tells
steps, and drops what clients have left.

For a cluster: `serve run ddit.serve.ray_app:build model=mini replicas=4`, or `build` in a Serve configuration file.
"""

import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddit.errors import near_misses
from ddit.serve.jobs import Limits
from ddit.serve.options import ServeConfig

if TYPE_CHECKING:  # seconds to import
    from fastapi import FastAPI
    from ray.serve import Application

APP_NAME = "ddit"
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"
OBJECT_STORE_BYTES = 100_000_000
"""Requests and answers go through gRPC; Ray's object store is not used for them."""


@dataclass(frozen=True)
class Replica:
    """What a replica needs to make its application.

    options: keywords of `Pipeline.from_pretrained` beside device and dtype.
    """

    model: str = "mini"
    device: str | None = None
    dtype: str | None = None
    compiled: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    config: ServeConfig = field(default_factory=ServeConfig)

    def make_app(self) -> "FastAPI":
        """Loads the model and makes the application; run in the replica's process."""
        from ddit.devices import limit_threads
        from ddit.model.folders import resolve
        from ddit.pipeline import Pipeline
        from ddit.serve.api import create_app

        folder = resolve(self.model)
        limit_threads(folder)
        pipeline = Pipeline.from_pretrained(folder, device=self.device, dtype=self.dtype, **self.options)
        if self.compiled:
            pipeline.compile()
        app = create_app(pipeline, self.config)
        _tell_replica(app)
        return app


def _tell_replica(app: "FastAPI") -> None:
    """Has every answer say which replica gave it, in the header X-DDIT-Replica."""
    from ray import serve
    from starlette.types import Message, Receive, Scope, Send

    name = serve.get_replica_context().replica_id.unique_id.encode()

    class Named:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def named(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", []), (b"x-ddit-replica", name)]
                await send(message)

            await self.inner(scope, receive, named)

    app.add_middleware(Named)


def deployment(replica: Replica, count: int, *, num_cpus: float = 1) -> "Application":
    """The application as `count` replicas, to be run by `ray.serve.run`.

    Ray lets as many requests into a replica as its engine takes, and answers 503 to those that no replica has room for
    after as many again; within a replica the engine answers 429.
    """
    from ray import serve

    def make_app() -> "FastAPI":  # of a plain function Ray knows that it is to be called in the replica
        return replica.make_app()

    limits = replica.config.limits
    taken = limits.max_queue + limits.max_batch_size
    made = serve.deployment(
        name=APP_NAME,
        num_replicas=count,
        max_ongoing_requests=taken,
        max_queued_requests=count * taken,
        health_check_period_s=10,
        graceful_shutdown_timeout_s=limits.timeout,
        ray_actor_options={"num_cpus": num_cpus},
    )(serve.ingress(make_app)())
    return made.bind()


def build(given: dict[str, str]) -> "Application":
    """For `serve run` and configuration files: model, replicas, device, dtype, files, api_key, max_queue, ..."""
    known = {
        "model",
        "replicas",
        "device",
        "dtype",
        "num_cpus",
        "files",
        "api_key",
        "max_queue",
        "max_batch_size",
    }
    for name in given:
        if name not in known:
            raise ValueError(f"unknown argument '{name}'{near_misses(name, known)}")
    limits = Limits()
    limits = replace(
        limits,
        max_queue=int(given.get("max_queue", limits.max_queue)),
        max_batch_size=int(given.get("max_batch_size", limits.max_batch_size)),
    )
    model = given.get("model", "mini")
    config = ServeConfig(
        model_name=Path(model).name,
        api_key=given.get("api_key") or os.environ.get("DDIT_API_KEY"),
        limits=limits,
        files=Path(given["files"]) if "files" in given else None,
    )
    replica = Replica(model, given.get("device"), given.get("dtype"), config=config)
    return deployment(replica, int(given.get("replicas", 1)), num_cpus=float(given.get("num_cpus", 1)))


def serve_replicas(
    replica: Replica, *, count: int, host: str, port: int, ready: Callable[[str], None], num_cpus: float = 1
) -> None:
    """Runs replicas on a Ray of this machine until SIGTERM or SIGINT, then finishes what runs and ends Ray.

    Without a folder of files the replicas share a temporary one.

    Raises:
        ValueError: if Ray is not installed, or port is 0.
    """
    _check_ray(port)
    stopped = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="ddit-files-") as folder,
        local_ray(host, port, num_cpus=count * num_cpus),
    ):
        if replica.config.files is None:
            replica = replace(replica, config=replace(replica.config, files=Path(folder)))
        run(replica, count, num_cpus=num_cpus)
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set handlers of its own by now
            signal.signal(number, lambda *_: stopped.set())
        ready(f"http://{host}:{port}")
        stopped.wait()


def _check_ray(port: int) -> None:
    if port == 0:
        raise ValueError("--ray needs a port of its own: 0 is none")
    try:
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--ray needs the extra 'ray' (pip install 'ddit[ray]'): {error}") from None


def run(replica: Replica, count: int, *, num_cpus: float = 1) -> None:
    """Deploys the replicas on the Ray that this process is connected to, and waits until they take requests."""
    from ray import serve

    serve.run(deployment(replica, count, num_cpus=num_cpus), name=APP_NAME, route_prefix="/")


@contextmanager
def local_ray(host: str, port: int, *, num_cpus: float) -> Iterator[None]:
    """Within this context Ray runs on this machine alone, with Serve's proxy at an address."""
    import ray
    from ray import serve

    before = os.environ.get(USAGE_VARIABLE)
    os.environ[USAGE_VARIABLE] = (
        "0"  # Ray would report its use over the network; there is no argument for that
    )
    try:
        ray.init(
            address="local",
            num_cpus=math.ceil(num_cpus),
            num_gpus=None,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        serve.start(http_options={"host": host, "port": port, "location": "HeadOnly"})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        if before is None:
            os.environ.pop(USAGE_VARIABLE, None)
        else:
            os.environ[USAGE_VARIABLE] = before
