"""The verb `ddit demo`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.shared import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    Int8Option,
    ModelOption,
    OffloadOption,
    load,
)


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    model: ModelOption = "mini",
    port: Annotated[int, typer.Option(min=0, max=65535, help="on 127.0.0.1; 0 takes a free one")] = 7860,
    adapter: AdapterOption = None,
    int8: Int8Option = False,
    offload: OffloadOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Serve the page to this machine's browser, until interrupted; prints its address.

    It is `ddit serve --page` on 127.0.0.1. Needs the extra `page`.
    """
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'ddit[page]'")
    from ddit.serve import server

    listening = server.bind("127.0.0.1", port)  # a port that is taken is told before a model is loaded
    pipeline = load(model, device, dtype, adapter=adapter, int8=int8, offload=offload)
    from ddit.serve.api import create_app
    from ddit.serve.options import ServeConfig
    from ddit.serve.page import mount_page

    config = ServeConfig(model_name=Path(model).name)
    app = create_app(pipeline, config)
    mount_page(app, app.state.service.engine, name=config.model_name)
    server.serve(app, listening, grace=1, ready=typer.echo)
