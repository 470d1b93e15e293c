"""Runs the application by uvicorn, until a signal, after which it finishes what it has taken."""

import asyncio
import math
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from ddit.serve.service import Service

KEEP_ALIVE_SECONDS = 20
FURTHER_SECONDS = 2.0
"""For answers to reach their clients, after the last job is done."""


class GracefulServer(uvicorn.Server):
    """Ends once every job is done and answered, not once every client has hung up: a page stays connected."""

    def __init__(self, config: uvicorn.Config, service: Service, *, grace: float) -> None:
        # uvicorn's own end, should ours fail
        config.timeout_graceful_shutdown = math.ceil(grace + 2 * FURTHER_SECONDS)
        super().__init__(config)
        self.service, self.grace = service, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.create_task(self._hang_up_when_drained())
        try:
            await super().shutdown(sockets)
        finally:
            drained.cancel()
            with suppress(asyncio.CancelledError):
                await drained

    async def _hang_up_when_drained(self) -> None:
        """Lets the engine finish within the grace, gives its answers time to leave, closes the connections that remain.

        A request that arrives meanwhile is answered 503, and so is a job that is not done within the grace.
        """
        await self.service.engine.stop(self.grace)
        await asyncio.sleep(FURTHER_SECONDS)
        for task in list(self.server_state.tasks):
            task.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()


def serve(app: FastAPI, listening: socket.socket, *, grace: float, ready: Callable[[str], object]) -> None:
    """Serves until SIGTERM or SIGINT, then finishes its jobs within `grace` seconds, closes the socket and returns.

    listening: from `bind`. ready: called with the address once requests are taken.
    """
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = GracefulServer(config, app.state.service, grace=grace)

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            ready(f"http://{shown}:{port}")
        await serving

    # uvicorn raises the signal again when it is done, which by default ends the process as if by a fault
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asyncio.run(run())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def _ignore(number: int, frame: object) -> None:
    pass


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, for `serve`; port 0 takes a free one. Raises ValueError if it cannot be bound."""
    listening: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        if listening is not None:
            listening.close()
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listening
