"""Running the application by uvicorn: signals, and an end that leaves nothing half done."""

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
"""What answers get for their way to the client, after the last job is done."""


class GracefulServer(uvicorn.Server):
    """Ends once every taken job is done and answered, not once every client has hung up: a page stays connected."""

    def __init__(self, config: uvicorn.Config, service: Service, *, grace: float) -> None:
        config.timeout_graceful_shutdown = math.ceil(
            grace + 2 * FURTHER_SECONDS
        )  # uvicorn's own end, if ours fails
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
        """Has the engine finish within the grace, gives its answers time to leave, and closes what is left.

        What comes on connections that are still open is answered 503, and so is what the grace does not suffice for.
        """
        await self.service.engine.stop(self.grace)
        await asyncio.sleep(FURTHER_SECONDS)
        for task in list(self.server_state.tasks):
            task.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()


def serve(app: FastAPI, listening: socket.socket, *, grace: float, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what runs within `grace` seconds, closes the socket and returns.

    listening: of `bind`. ready: called with the address once requests are taken.
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

    # uvicorn raises the signal anew when it is done, which by default would end the process as if by a fault
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
    """A socket of that address, for `serve`; port 0 takes a free one. Raises ValueError if it cannot be had."""
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
