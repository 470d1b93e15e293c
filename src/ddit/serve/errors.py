"""Errors in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ddit.schema import broken_rule
from ddit.serve.answers import ErrorBody, ErrorDetail
from ddit.serve.jobs import Overloaded, Stopping, TimedOut

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 500
FASTAPI_CANNOT_PARSE = "There was an error parsing the body"


class ApiError(Exception):
    """An error that is answered to a client.

    param: the field that is wrong, if one is. code: for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.status, self.param, self.code)

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def error_body(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error's answer."""
    kinds = {429: "rate_limit_error", 401: "authentication_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    # it may quote what a client sent: it must be short, and text that can be encoded
    shown = " ".join(message.encode(errors="backslashreplace").decode().split())
    if len(shown) > LONGEST_MESSAGE:
        shown = shown[:LONGEST_MESSAGE] + " ..."
    return ErrorBody(error=ErrorDetail(message=shown, type=kind, param=param, code=code)).model_dump()


def as_api_error(error: Exception) -> ApiError:
    """What a client is answered at an exception. A fault of ours is logged, and answered without its details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return ApiError(str(error), status=429, code="rate_limit_exceeded", retry_after=error.retry_after)
    if isinstance(error, TimedOut):
        return ApiError(str(error), status=504, code="timeout")
    if isinstance(error, Stopping):
        return ApiError(str(error), status=503, code="stopping", retry_after=5)
    if isinstance(error, RequestValidationError):
        message, param = _first_fault(error.errors())
        return ApiError(message, param=param, code="invalid_value")
    if isinstance(error, HTTPException):
        if error.status_code == 400 and error.detail == FASTAPI_CANNOT_PARSE:
            return ApiError(
                "the body is not JSON in UTF-8, or is nested too deeply, or has too long a number"
            )
        return ApiError(str(error.detail), status=error.status_code, code=CODES.get(error.status_code))
    log.error("a request failed", exc_info=error)
    return ApiError("the server failed at this request", status=500, code="internal_error")


CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def as_job_error(error: Exception) -> ApiError:
    """The same for what comes out of the engine, where a ValueError is a user's mistake."""
    return (
        ApiError(str(error), code="invalid_value") if isinstance(error, ValueError) else as_api_error(error)
    )


def _first_fault(faults: Sequence[Any]) -> tuple[str, str | None]:
    """One line about the first of pydantic's faults, and the field."""
    if not faults:
        return "the request is not valid", None
    # of a union's members, the client meant the one whose fault lies deepest
    fault = max(faults, key=lambda fault: len(fault["loc"]))
    tags = ("body", "query", "path", "str")  # where it was looked for, and members of unions
    place = ".".join(str(part) for part in fault["loc"] if part not in tags and "[" not in str(part))
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", "")
        return f"the body is not valid JSON: {reason}", None
    if tuple(fault["loc"]) == ("body",) and fault["type"] in (
        "missing",
        "model_attributes_type",
        "dict_type",
    ):
        return "the body must be a JSON object, with content-type application/json", None
    if fault["type"] == "missing":
        return f"missing field '{place}'", place
    rule = broken_rule(fault)
    if rule is not None and place:
        return f"{place} {rule}", place
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if message.startswith("Expected UploadFile"):
        message = "this field must be a file"
    return (f"{place}: {message}" if place else message), place or None


def add_error_handlers(app: FastAPI) -> None:
    """Makes every fault of a request be answered in one shape."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, Overloaded, TimedOut, Stopping, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
