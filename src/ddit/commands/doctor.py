"""The verb `ddit doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddit.commands import completion
from ddit.commands.loading import paused_gc
from ddit.commands.options import DeviceOption, JsonOption, spread
from ddit.commands.output import check_choice, check_writable, to_json

if TYPE_CHECKING:
    from ddit.doctor.report import Finding

PARTS = ("machine", "kernels", "model", "training", "real-size")


@spread
def doctor(
    train: Annotated[
        bool, typer.Option("--train", help="training too: a step of each recipe, small and at real width")
    ] = False,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help=f"this part alone, any number of times: {', '.join(PARTS)}",
            autocompletion=completion.among(*PARTS),
        ),
    ] = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel="Output",
            help="write the report (markdown) here too",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what this machine can do, and print a report.

    Checks device, kernels, memory, models and training. The report is markdown, to be pasted into an issue. If a check
    fails, the others still run, and the exit code is 1.

    Examples:
        ddit doctor
        ddit doctor --train --out report.md
    """
    for part in parts or []:
        check_choice("part", part, PARTS)
    if out is not None:
        check_writable(out.absolute().parent)
    report, num_failed = _examine(device, train, parts, as_json)
    if not as_json:
        typer.echo(report)
    if out is not None:
        out.write_text(report + "\n")
    if num_failed:
        raise typer.Exit(1)


def _examine(device: str | None, train: bool, parts: list[str] | None, as_json: bool) -> tuple[str, int]:
    """Runs the checks; the report, and how many failed."""
    with paused_gc():
        from ddit.devices import find_device
        from ddit.doctor.checks import list_checks
        from ddit.doctor.report import open_bench, run_checks, to_markdown

    torch_device, checks = find_device(device), list_checks(train=train or bool(parts))
    checks = [check for check in checks if not parts or check.group in parts]
    findings = []
    with open_bench(torch_device) as bench:
        for finding in run_checks(checks, bench):
            findings.append(finding)
            _show(finding, as_json)
    return to_markdown(findings, torch_device), sum(finding.status == "failed" for finding in findings)


def _show(finding: "Finding", as_json: bool) -> None:
    """A line of progress, and with --json the object."""
    typer.echo(f"{finding.status:<7} {finding.group}: {finding.name}: {finding.figure}", err=True)
    if as_json:
        typer.echo(to_json(vars(finding)))
