"""The verb `ddit verify`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands import completion
from ddit.commands.options import DeviceOption, JsonOption, spread
from ddit.commands.output import print_result


@spread
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="reference tensors with the model that made them")
    ],
    atol: Annotated[float, typer.Option(min=0, help="absolute tolerance")] = 1e-4,
    rtol: Annotated[float, typer.Option(min=0, help="relative tolerance")] = 1e-4,
    device: DeviceOption = None,
    dtype: Annotated[
        str,
        typer.Option(
            rich_help_panel="Performance",
            help="float32, bfloat16 or float16",
            autocompletion=completion.among(*completion.DTYPES),
        ),
    ] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Recompute every reference tensor of DIR.

    Prints the largest absolute error of each; the exit code is 1 if one is out of tolerance.

    Examples:
        ddit verify tests/data/tiny
        ddit verify tests/data/tiny --device cuda --dtype bfloat16 --atol 0.1
    """
    from safetensors import SafetensorError

    from ddit.devices import find_device, find_dtype
    from ddit.inference.verify import verify as compare

    torch_device, torch_dtype = find_device(device), find_dtype(dtype)
    total, failed = 0, 0
    try:
        for result in compare(folder, atol=atol, rtol=rtol, dtype=torch_dtype, device=torch_device):
            total, failed = total + 1, failed + (not result.within)
            line = f"{'ok  ' if result.within else 'FAIL'} {result.name:<24} {result.max_error:.2e}"
            print_result(as_json, line, name=result.name, max_error=result.max_error, within=result.within)
    except SafetensorError as error:
        raise ValueError(f"'{folder}' cannot be read: {error}") from None
    outcome = f"{failed} of {total} tensors are not" if failed else f"all {total} tensors are"
    typer.echo(f"ddit: {outcome} within {atol:g} + {rtol:g} x reference", err=True)
    if failed or not total:
        raise typer.Exit(1)
