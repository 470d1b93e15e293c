"""The verbs `ddit serve` and `ddit page`."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.loading import load
from ddit.commands.options import Given, ModelOption, spread
from ddit.commands.progress import print_note
from ddit.schema import override
from ddit.serve.options import ServeConfig
from ddit.settings import LoadOptions


@spread
def serve(
    *,
    model: ModelOption = "mini",
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel="Server",
            help="address to listen on; 0.0.0.0 is every one of this machine",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, rich_help_panel="Server", help="port to listen on; 0 takes a free one"
        ),
    ] = 8000,
    page: Annotated[
        bool,
        typer.Option(
            "--page/--no-page", rich_help_panel="Server", help="also serve the page, at / (extra page)"
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(min=0, rich_help_panel="Server", help="seconds to finish what runs, at SIGTERM"),
    ] = 60.0,
    ray: Annotated[
        bool, typer.Option("--ray", rich_help_panel="Performance", help="replicas by Ray Serve (extra ray)")
    ] = False,
    replicas: Annotated[
        int, typer.Option(min=1, rich_help_panel="Performance", help="number of replicas, with --ray")
    ] = 1,
    options: Given[ServeConfig],
    loading: LoadOptions,
) -> None:
    """Serve MODEL over HTTP to OpenAI's clients.

    The API is at /v1, its document at /docs, its health at /healthz and its figures at /metrics. SIGTERM finishes what
    runs.

    Examples:
        ddit serve
        DDIT_API_KEY=secret ddit serve --host 0.0.0.0 --port 8000 --timeout 120
    """
    _check_extra()
    config = override(ServeConfig(model_name=Path(model).name), options)
    if page and config.api_key is not None:
        raise ValueError("the page has no login: it does not go with a token")
    if replicas > 1 and not ray:
        raise ValueError(f"--replicas {replicas} needs --ray")
    if not ray:
        _serve(model, loading, config, host=host, port=port, grace=grace, page=page, ready=_announce)
        return
    if page:
        raise ValueError("the page is not served by replicas: leave out --page")
    from ddit.serve.ray_app import Replica, serve_replicas

    replica = Replica(model, loading, config)
    serve_replicas(replica, count=replicas, host=host, port=port, ready=_announce)


@spread
def page(
    *,
    model: ModelOption = "mini",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0 takes a free one")] = 7860,
    loading: LoadOptions,
) -> None:
    """Open the page: images and texts in a browser.

    Prints the page's address on this machine and serves it until Ctrl-C. It is `ddit serve --page` on 127.0.0.1. Needs
    the extra `page`.

    Examples:
        ddit page
        ddit page --model runs/mini-stage3/export --port 0
    """
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'ddit[page]'")
    config = ServeConfig(model_name=Path(model).name)
    _serve(model, loading, config, host="127.0.0.1", port=port, grace=1, page=True, ready=_announce_page)


def _serve(
    model: str,
    loading: LoadOptions,
    config: ServeConfig,
    *,
    host: str,
    port: int,
    grace: float,
    page: bool,
    ready: Callable[[str], object],
) -> None:
    """Serves a model from this process until SIGTERM or SIGINT."""
    from ddit.serve import server

    listening = server.bind(host, port)  # an address that is taken is found before a model is loaded
    print_note(f"loading {model}")
    pipeline = load(model, loading)
    from ddit.serve.api import create_app

    app = create_app(pipeline, config)
    if page:
        from ddit.serve.page import mount_page

        app = mount_page(app, app.state.service.engine, name=app.state.service.model_name)
    server.serve(app, listening, grace=grace, ready=ready)


def _announce_page(address: str) -> None:
    typer.echo(address)
    print_note("open this address in a browser; Ctrl-C ends")


def _announce(address: str) -> None:
    typer.echo(f"ddit: serving on {address} (API at {address}/v1)", err=True)


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ddit serve needs the extra 'serve' (pip install 'ddit[serve]'): {error}") from None
