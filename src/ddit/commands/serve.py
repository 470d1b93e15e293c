"""The verb `ddit serve`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.shared import (
    AdapterOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    Int8Option,
    MaskOption,
    ModelOption,
    OffloadOption,
    load,
)

API_KEY_VARIABLE = "DDIT_API_KEY"


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    model: ModelOption = "mini",
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 is every one of this machine")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar=API_KEY_VARIABLE, help="bearer token that requests must bring")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="the page at / (extra page)")] = False,
    max_batch_size: Annotated[int, typer.Option(min=1, help="jobs of one call of the model")] = 16,
    max_wait: Annotated[
        float, typer.Option(min=0, help="milliseconds that an idle server waits for more jobs")
    ] = 4.0,
    max_queue: Annotated[int, typer.Option(min=1, help="jobs that wait; more are answered 429")] = 64,
    timeout: Annotated[float, typer.Option(help="seconds of a request, queue included")] = 60.0,
    grace: Annotated[float, typer.Option(min=0, help="seconds to finish what runs, at SIGTERM")] = 60.0,
    max_n: Annotated[int, typer.Option(min=1, help="pictures or answers of one request")] = 10,
    max_steps: Annotated[int, typer.Option(min=1, help="steps of one picture or text")] = 100,
    max_side: Annotated[int, typer.Option(min=1, help="pixels of a side of what is sent back")] = 2048,
    max_prompt_chars: Annotated[int, typer.Option(min=1, help="of a prompt, question or text")] = 2000,
    max_image_pixels: Annotated[int, typer.Option(min=1, help="of a picture that is sent")] = 16_000_000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="of a request")] = 20_000_000,
    body_timeout: Annotated[float, typer.Option(help="seconds within which a body must have come")] = 30.0,
    fetch_urls: Annotated[
        bool, typer.Option("--fetch-urls", help="fetch pictures from public addresses that clients name")
    ] = False,
    files: Annotated[
        Path | None, typer.Option(help="folder of uploads and of pictures as URLs [default: a temporary one]")
    ] = None,
    max_files: Annotated[int, typer.Option(min=1, help="files kept; the oldest go first")] = 1000,
    max_files_bytes: Annotated[int, typer.Option(min=1, help="bytes of the files kept")] = 1_000_000_000,
    public_url: Annotated[str | None, typer.Option(help="this server's address in URLs of pictures")] = None,
    cors_origins: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="origin whose pages may use the API")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="replicas by Ray Serve (extra ray)")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="with --ray")] = 1,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    int8: Int8Option = False,
    offload: OffloadOption = False,
    compiled: CompileOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Serve MODEL over HTTP to OpenAI's clients.

    The API is at /v1, its document at /docs; /healthz and /metrics tell how it is. SIGTERM finishes what runs.
    """
    _check_extra()
    from ddit.serve.jobs import Limits
    from ddit.serve.options import ServeConfig

    config = ServeConfig(
        model_name=Path(model).name,
        api_key=api_key,
        limits=Limits(max_batch_size, max_queue, max_wait / 1000, timeout),
        max_body_bytes=max_body_bytes,
        body_timeout=body_timeout,
        max_image_pixels=max_image_pixels,
        max_prompt_chars=max_prompt_chars,
        max_n=max_n,
        max_steps=max_steps,
        max_side=max_side,
        fetch_urls=fetch_urls,
        files=files,
        max_files=max_files,
        max_files_bytes=max_files_bytes,
        public_url=public_url,
        cors_origins=tuple(cors_origins or ()),
    )
    if page and api_key is not None:
        raise ValueError("the page has no login: it does not go with a token")
    if replicas > 1 and not ray:
        raise ValueError(f"--replicas {replicas} needs --ray")
    if ray:
        if page:
            raise ValueError("the page is not served by replicas: leave out --page")
        from ddit.serve.ray_app import Replica, serve_replicas

        options = {
            "mask_embedding": mask_embedding,
            "adapter": adapter,
            "text_encoder": "int8" if int8 else "whole",
            "offload": offload,
        }
        replica = Replica(model, device, dtype, compiled=compiled, options=options, config=config)
        serve_replicas(replica, count=replicas, host=host, port=port, ready=_announce)
        return
    from ddit.serve import server

    listening = server.bind(host, port)  # an address that is taken is told before a model is loaded
    pipeline = load(
        model, device, dtype, mask_embedding=mask_embedding, adapter=adapter, int8=int8, offload=offload
    )
    if compiled:
        pipeline.compile()
    from ddit.serve.api import create_app

    app = create_app(pipeline, config)
    if page:
        from ddit.serve.page import mount_page

        app = mount_page(app, app.state.service.engine, name=config.model_name)
    server.serve(app, listening, grace=grace, ready=_announce)


def _announce(address: str) -> None:
    typer.echo(f"ddit: serving on {address} (API at {address}/v1)", err=True)


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ddit serve needs the extra 'serve' (pip install 'ddit[serve]'): {error}") from None
