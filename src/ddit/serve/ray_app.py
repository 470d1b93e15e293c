"""The same application as a Ray Serve deployment: replicas, on one machine or many, behind Ray's proxy.

Each replica batches with its own engine and not with `ray.serve.batch`, which batches the calls of one method whatever
they ask for and gives each a whole result. The engine batches jobs of one kind, takes the jobs of a request together,
streams steps, and drops what clients have left.

For a cluster: `serve run ddit.serve.ray_app:build model=mini replicas=4`, or `build` in a Serve configuration file.
"""

import dataclasses
import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddit.devices import limit_threads
from ddit.errors import near_misses
from ddit.model.folders import resolve
from ddit.pipeline import Pipeline
from ddit.schema import list_options, override
from ddit.serve.api import create_app
from ddit.serve.options import ServeConfig
from ddit.settings import LoadOptions

if TYPE_CHECKING:  # the extra ray
    from ray.serve import Application

APP_NAME = "ddit"
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"
OBJECT_STORE_BYTES = 100_000_000
"""Requests and answers go through gRPC; Ray's object store is not used for them."""


@dataclass(frozen=True)
class Replica:
    """What a replica needs to make its application."""

    model: str = "mini"
    load: LoadOptions = field(default_factory=LoadOptions)
    config: ServeConfig = field(default_factory=ServeConfig)

    def make_app(self) -> FastAPI:
        """Loads the model and makes the application, in the replica's process."""
        folder = resolve(self.model)
        limit_threads(folder)
        app = create_app(Pipeline.from_pretrained(folder, **dataclasses.asdict(self.load)), self.config)
        _add_replica_header(app)
        return app


def _add_replica_header(app: FastAPI) -> None:
    """Makes every answer name its replica in the header X-DDIT-Replica."""
    from ray import serve

    name = serve.get_replica_context().replica_id.unique_id.encode()

    class Named:
        def __init__(self, inner: ASGIApp) -> None:
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

    Ray passes as many requests to a replica as its engine takes, and holds as many again; beyond that it answers 503.
    Within a replica the engine answers 429.
    """
    from ray import serve

    def make_app() -> FastAPI:  # Ray calls a plain function in the replica
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


def build(given: dict[str, Any]) -> "Application":
    """For `serve run` and configuration files: model, replicas, num_cpus, and the options of loading and serving.

    Raises:
        ValueError: for an unknown argument or a bad value.
    """
    model = str(given.get("model", "mini"))
    config = ServeConfig(model_name=Path(model).name, api_key=os.environ.get("DDIT_API_KEY"))
    hints = {
        "model": str,
        "replicas": int,
        "num_cpus": float,
        **{
            option.name: option.annotation for of in (LoadOptions, ServeConfig) for option in list_options(of)
        },
    }
    values = {name: _parse(name, value, hints) for name, value in given.items()}

    def of(options: Any) -> dict[str, Any]:
        return {option.name: values.get(option.name) for option in list_options(options)}

    replica = Replica(model, override(LoadOptions(), of(LoadOptions)), override(config, of(ServeConfig)))
    return deployment(replica, values.get("replicas", 1), num_cpus=values.get("num_cpus", 1))


def _parse(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """The value of an argument, which the command line gives as a string."""
    if name not in hints:
        raise ValueError(f"unknown argument '{name}'{near_misses(name, hints)}")
    try:
        return TypeAdapter(hints[name]).validate_python(value)
    except ValidationError:
        raise ValueError(f"bad value for {name}: {value!r}") from None


def serve_replicas(
    replica: Replica, *, count: int, host: str, port: int, ready: Callable[[str], object], num_cpus: float = 1
) -> None:
    """Runs replicas on a Ray of this machine until SIGTERM or SIGINT, then finishes their jobs and ends Ray.

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
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own handlers by now
            signal.signal(number, lambda *_: stopped.set())
        ready(f"http://{host}:{port}")
        stopped.wait()


def _check_ray(port: int) -> None:
    if port == 0:
        raise ValueError("--ray needs a fixed port, not 0")
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
    """Within this context Ray runs on this machine alone, with Serve's proxy at that address."""
    import ray
    from ray import serve

    before = os.environ.get(USAGE_VARIABLE)
    os.environ[USAGE_VARIABLE] = "0"  # there is no argument against Ray's reports over the network
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
