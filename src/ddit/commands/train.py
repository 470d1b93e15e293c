"""The verbs `ddit train` and `ddit merge`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ddit.commands import completion
from ddit.commands.loading import paused_gc
from ddit.commands.options import spread
from ddit.commands.output import check_free_folder, check_writable

NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE",
        help="a stage, or mini for its whole chain (docs/training.md); with --plot: runs",
        autocompletion=completion.recipes,
    ),
]
RootOption = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", rich_help_panel="Output", help="folder that holds the runs, one folder per stage"
    ),
]
WorldOption = Annotated[
    str, typer.Option(help="preset of the small world, for mini", autocompletion=completion.presets)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="change a setting, any number of times: optimizer.lr=1e-4"
    ),
]
InitOption = Annotated[str | None, typer.Option(metavar="MODEL", help="model folder or hub id to start from")]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel="Output",
        help="print the configuration as JSON (of a chain a list) and stop",
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        metavar="MACHINE",
        rich_help_panel="Output",
        help="print the memory and time expected on a machine (H100, 8xH100, 4x8xA100) and stop",
    ),
]
PlotOption = Annotated[
    bool, typer.Option("--plot", rich_help_panel="Output", help="plot the curves of RUN folders into a PNG")
]
CurvesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel="Output", help="file of --plot [default: curves.png in the first RUN]"
    ),
]


@spread
def train(
    names: NamesArgument,
    root: RootOption = Path("runs"),
    world: WorldOption = "fixed",
    overrides: SetOption = None,
    init: InitOption = None,
    dry_run: DryRunOption = False,
    plan: PlanOption = None,
    plot: PlotOption = False,
    out: CurvesOption = None,
) -> None:
    """Run a training RECIPE, or resume it.

    With --plot RUN [RUN ...] nothing is trained: the curves of these runs are plotted over one another.

    Examples:
        ddit train mini --dry-run
        ddit train sd3-medium-lora --init stable-diffusion-3-medium-diffusers --set optimizer.lr=1e-4
        ddit train --plot runs/mini-stage1 runs/mini-stage2 --out curves.png
    """
    if plot:
        from ddit.train.plot import plot_runs

        typer.echo(plot_runs([Path(name) for name in names], out))
        return
    if len(names) > 1:
        raise ValueError(f"one recipe at a time, got {' and '.join(names)} (several runs go with --plot)")
    if out is not None:
        raise ValueError("--out is the file of --plot; the folder of a run is --set out=DIR")
    from ddit.config.runs import to_json
    from ddit.recipes import plan_runs

    changes = [*(overrides or []), *([] if init is None else [f"init={json.dumps(init)}"])]
    configs = plan_runs(names[0], root, world=world, overrides=changes)
    if plan is not None:
        _print_plans(configs, plan)
        return
    if dry_run:
        texts = [to_json(config).rstrip() for config in configs]
        typer.echo(texts[0] if len(texts) == 1 else "[" + ",\n".join(texts) + "]")
        return
    check_writable(root)
    with paused_gc():
        from ddit.train.stages import run_stages
    run_stages(configs)


def _print_plans(configs: Iterable[object], machine: str) -> None:
    from ddit.config.runs import DualRun

    with paused_gc():
        from ddit.train.plan import Machine, expected_encoders, make_plan
    for config in configs:
        if isinstance(config, DualRun):
            typer.echo(make_plan(config, Machine.named(machine), expected_encoders(config)).to_text())


@spread
def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="model folder, mini, or hub id that the adapters were trained on"
        ),
    ],
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="folder of LoRA adapters, or a LoRA file made for SD3")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", rich_help_panel="Output", help="folder of the merged model")
    ],
    dtype: Annotated[
        str,
        typer.Option(
            help="of the merged transformer; the sums are float32",
            autocompletion=completion.among(*completion.DTYPES),
        ),
    ] = "bfloat16",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel="Output", help="replace OUT if it exists")
    ] = False,
) -> None:
    """Merge LoRA adapters into a model's weights.

    Writes BASE with the adapters of ADAPTER to OUT, a model folder. Text encoder and autoencoder are hard links to
    BASE's files, where the disk has them, and stay as they are. A LoRA file for SD3 may have diffusers' names or
    kohya's.

    Examples:
        ddit merge mini runs/lora/adapter merged
        ddit merge stable-diffusion-3-medium-diffusers runs/lora/adapter merged --dtype float16
    """
    if not overwrite:
        check_free_folder(out)
    from ddit.devices import find_dtype
    from ddit.model.folders import resolve

    torch_dtype, folder = find_dtype(dtype), resolve(base)
    check_writable(out.absolute().parent)
    from ddit.model.saving import merge_adapter

    merge_adapter(folder, adapter, out, dtype=torch_dtype)
    typer.echo(out)
