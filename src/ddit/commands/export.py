"""The verb `ddit export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddit.commands.options import spread
from ddit.commands.output import check_free_folder, check_writable

if TYPE_CHECKING:
    from ddit.train.checkpoint import Checkpoint


@spread
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a training run")],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]",
            rich_help_panel="Output",
            help="folder of the model [default: RUN/export, RUN/export_raw with --no-average; with --step, also -STEP]",
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="of the checkpoint [default: the newest]"),
    ] = None,
    average: Annotated[
        bool,
        typer.Option(
            "--average/--no-average",
            help="the averaged weights, or those of the step itself [default: average]",
        ),
    ] = True,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="store the text encoder in 8 bit: half of bfloat16's size and memory"),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel="Output", help="replace OUT if it exists")
    ] = False,
) -> None:
    """Make a model folder of a training run's checkpoint.

    The text encoder and the autoencoder are hard links to the files that the run was trained with, where the disk has
    them.

    Examples:
        ddit export runs/mine/sd3-medium-stage1
        ddit export runs/mine/sd3-medium-stage1 early --step 20000 --no-average
        ddit export runs/mine/sd3-medium-stage3 small --int8
    """
    from ddit.config.runs import DualRun, from_json

    if out is None:
        name = "export" if average else "export_raw"
        out = run / (name if step is None else f"{name}-{step:08d}")
    if not overwrite:
        check_free_folder(out)
    checkpoint = _find_checkpoint(run, step)
    config = from_json(checkpoint.description["config"])
    assert isinstance(config, DualRun)
    check_writable(out.absolute().parent)
    from ddit.train.export import export_checkpoint

    export_checkpoint(config, checkpoint.folder, out, averaged=average, int8=int8)
    typer.echo(out)


def _find_checkpoint(run: Path, step: int | None) -> "Checkpoint":
    from ddit.train.checkpoint import find_newest, stored_steps

    if not run.is_dir():
        raise ValueError(f"there is no folder '{run}'")
    checkpoint = find_newest(run, step)
    if checkpoint is None:
        others = ", ".join(map(str, stored_steps(run))) if step is not None else ""
        raise ValueError(
            f"'{run}' has no complete checkpoint"
            + ("" if step is None else f" of step {step}")
            + (f": there are those of {others}" if others else "")
        )
    return checkpoint
