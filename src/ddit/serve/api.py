"""The HTTP API: an application over an engine, in the form that OpenAI's clients speak."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match

import ddit
from ddit.pipeline import Pipeline
from ddit.serve.answers import Health, ModelList, ModelObject
from ddit.serve.chat import add_chat_routes
from ddit.serve.content import ImageReader
from ddit.serve.engine import Engine
from ddit.serve.errors import CODES, ApiError, add_error_handlers
from ddit.serve.files import FileStore
from ddit.serve.guard import Guard
from ddit.serve.images import add_image_routes
from ddit.serve.metrics import Metrics
from ddit.serve.openai_fields import ROUTES
from ddit.serve.options import ServeConfig
from ddit.serve.service import FAULTS, Service
from ddit.serve.uploads import add_file_routes

DESCRIPTION = """Generates images from text and text from images. OpenAI's clients work with this server: set their
base URL to its `/v1`. The field `ddit` of answers is for what OpenAI's form has no place for: seeds, `notices` (such as
words that the model does not know), texts on the way."""


def create_app(engine: Engine | Pipeline, config: ServeConfig | None = None) -> FastAPI:
    """The application; its lifespan starts the engine, and stops it once all its jobs are done.

    Args:
        engine: or a pipeline, for an engine with the limits of the configuration.

    Raises:
        ValueError: if the folder of files cannot be written to.
    """
    config = config or ServeConfig()
    if not isinstance(engine, Engine):
        engine = Engine(engine, config.limits)
    store = FileStore(config.files, max_files=config.max_files, max_bytes=config.max_files_bytes)
    metrics = Metrics()
    metrics.watch(engine)
    service = Service(engine, config, store, ImageReader(config, store), metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        try:
            yield
        finally:
            await service.engine.stop(grace=config.limits.timeout)
            service.reader.close()
            service.store.close()

    app = FastAPIOffline(
        title="ddit", version=ddit.__version__, description=DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    app.state.service = service
    add_error_handlers(app)
    add_chat_routes(app, service)
    add_image_routes(app, service)
    add_file_routes(app, service)
    _add_status_routes(app, service)
    _add_unknown_route(app)
    _leave_out_422(app)
    app.add_middleware(Guard, config=config, metrics=metrics)
    if config.cors_origin:
        app.add_middleware(
            CORSMiddleware, allow_origins=config.cors_origin, allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _add_status_routes(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.get("/", include_in_schema=False)
    async def index() -> dict[str, str]:
        return {
            "name": f"ddit {ddit.__version__}",
            "model": service.model_name,
            "docs": "/docs",
            "openapi": "/openapi.json",
            "api": "/v1",
            "health": "/healthz",
        }

    @app.get(
        "/healthz", tags=["status"], summary="Whether requests are taken", responses={503: {"model": Health}}
    )
    async def health(response: Response) -> Health:
        if engine.is_running:
            return Health(status="ok", waiting=engine.num_waiting, running=engine.num_running)
        response.status_code = 503
        return Health(status="stopping", waiting=0, running=engine.num_running)

    @app.get(
        "/metrics", tags=["status"], summary="Figures for Prometheus", responses={401: FAULTS[401]},
        response_class=PlainTextResponse,
    )  # fmt: skip
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    own = ModelObject(id=service.model_name, created=service.created)

    @app.get("/v1/models", tags=["models"], summary="The model", responses={401: FAULTS[401]})
    async def models() -> ModelList:
        return ModelList(data=[own])

    @app.get("/v1/models/{model:path}", tags=["models"], summary="A model", responses=FAULTS)
    async def model(model: str) -> ModelObject:
        if model != own.id:
            raise ApiError(
                f"there is no model '{model[:60]}'", status=404, param="model", code="model_not_found"
            )
        return own


def _add_unknown_route(app: FastAPI) -> None:
    """Answers paths under /v1 that are no route in our shape; a mounted page would answer in its own."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

    @app.api_route("/v1/{path:path}", methods=methods, include_in_schema=False)
    async def unknown(request: Request) -> None:
        called = f"{request.method} {request.url.path}"
        matches = [route.matches(request.scope)[0] for route in app.router.routes]
        status = 405 if Match.PARTIAL in matches else 404
        reason = next(
            (why for known, why in ROUTES.items() if re.fullmatch(known, called)), "/docs lists what it has"
        )
        raise ApiError(f"this server has no {called[:100]}: {reason}", status=status, code=CODES[status])


def _leave_out_422(app: FastAPI) -> None:
    """FastAPI documents 422 for every route; here such faults are answered with 400, in OpenAI's shape."""
    make = app.openapi

    def document() -> dict[str, Any]:
        made = make()
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            made.get("components", {}).get("schemas", {}).pop(name, None)
        return made

    app.openapi = document  # type: ignore[method-assign]
