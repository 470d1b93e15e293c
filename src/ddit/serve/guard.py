"""Before the application: the token, size and time of bodies, counting. Plain ASGI, which does not hold up streams."""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddit.serve.errors import ApiError
from ddit.serve.metrics import Metrics
from ddit.serve.options import ServeConfig

log = logging.getLogger(__name__)

OPEN = re.compile(r"/|/healthz|/docs|/static-offline-docs/.+|/openapi\.json|/v1/files/[^/]+/content")
"""Paths that need no token. The content of a file is protected by its id, which only its owner knows."""

DRAINED = 4
"""Times the limit up to which a body that is too large is read and thrown away: a client that is cut off while it sends
does not read the answer."""

SHARED = 16
"""Bodies of the largest size that may be held at a time, of all requests together."""


class Guard:
    """Answers requests that may not pass, and counts all of them.

    A body is held until it is whole, then passed on: its size and time are bounded whether its length was announced or
    not.
    """

    def __init__(self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self._admit(scope, receive, counted)
        finally:
            self.metrics.in_flight.dec()
            # no status: the client has left, or the server was stopped
            self.metrics.count_request(_route(scope), status or 499, time.monotonic() - began)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = 0
        try:
            self._check_token(scope)
            body = await self._read_body(scope, receive)
            held = len(body)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except _Left:
            return
        self._held_bytes += held
        try:
            await self.app(scope, _replay(body, receive), send)
        finally:
            self._held_bytes -= held

    def _check_token(self, scope: Scope) -> None:
        key = self.config.api_key
        if key is None or OPEN.fullmatch(scope["path"]):
            return
        given = _header(scope["headers"], b"authorization") or b""
        kind, _, token = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), key.encode()):
            raise ApiError(
                "this server requires a token: Authorization: Bearer KEY", status=401, code="invalid_api_key"
            )

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.config.max_body_bytes
        announced = _header(scope["headers"], b"content-length") or b"0"
        is_too_large = announced.isdigit() and int(announced[:20]) > limit
        chunks: list[bytes] = []
        size, more = 0, not (is_too_large and int(announced[:20]) > DRAINED * limit)
        try:
            async with asyncio.timeout(self.config.body_timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Left
                    size += len(message.get("body", b""))
                    is_too_large = is_too_large or size > limit
                    if is_too_large:
                        chunks.clear()
                    else:
                        chunks.append(message.get("body", b""))
                        self._check_total(size)
                    more = message.get("more_body", False) and size <= DRAINED * limit
        except TimeoutError:
            raise ApiError(
                f"the body did not arrive within {self.config.body_timeout:g} s", status=408, code="timeout"
            ) from None
        if is_too_large:
            raise ApiError(f"the body is larger than {limit:,} bytes", status=413, code="body_too_large")
        return b"".join(chunks)

    def _check_total(self, size: int) -> None:
        if self._held_bytes + size > SHARED * self.config.max_body_bytes:
            raise ApiError("too many large requests at a time", status=503, code="overloaded", retry_after=5)


class _Left(Exception):
    """The client left while it was sending."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body, then what comes after it."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _header(headers: Sequence[Any], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key.lower() == name), None)


def _route(scope: Scope) -> str:
    """The route's template, so that ids in paths do not multiply the series."""
    return getattr(scope.get("route"), "path", None) or "other"
