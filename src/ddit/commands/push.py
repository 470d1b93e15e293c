"""The verb `ddit push`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.options import spread


@spread
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="model folder, such as a run's export")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the hub")],
    *,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="one of the hub's names, such as apache-2.0")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="hub id of the model that it was trained from")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="figures for the card: the --out folder of ddit eval"),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=NAME", help="hub's data set of a task's figure, for its leaderboard"),
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="of the commit")] = None,
    private: Annotated[
        bool, typer.Option("--private", rich_help_panel="Output", help="a new repository is private")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel="Output", help="write the card and upload nothing")
    ] = False,
) -> None:
    """Upload a model FOLDER to the hub, with a model card.

    Writes README.md into FOLDER: what the model is, what it was trained on, its figures. Of a card that is there, the
    text stays and the header is brought up to date. HF_ENDPOINT and HF_TOKEN say where to and as whom.

    Examples:
        ddit push runs/mine/sd3-medium-stage3/export me/my-d-dit --license apache-2.0 --results runs/eval
        ddit push merged me/my-d-dit --private --dry-run
    """
    from ddit.hub import CARD_FILE, parse_datasets, push_folder

    datasets = parse_datasets(dataset or [])
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"'{folder}' is not a model folder: it has no model_index.json")
    _describe(folder, repo_id, license, base_model, results, datasets)
    typer.echo(
        folder / CARD_FILE if dry_run else push_folder(folder, repo_id, private=private, message=message)
    )


def _describe(
    folder: Path,
    repo_id: str,
    license: str | None,
    base_model: str | None,
    results: Path | None,
    datasets: dict[str, str],
) -> None:
    """Writes the card, and the figures in the leaderboards' form, into the folder."""
    from ddit.eval.report import model_hash
    from ddit.hub import card_header, check_results, read_results, run_facts, write_card, write_results
    from ddit.model.info import inspect_model

    digest, info = model_hash(folder), inspect_model(folder)
    found = read_results(results) if results is not None else []
    check_results(found, digest)
    write_results(folder, found, datasets)
    facts = {
        "transformer": f"{info.parts[0].parameters / 1e6:,.1f} M parameters",
        "images": f"{info.settings.image_size} px",
        "SHA-256 of the weights": digest[:16],
        **run_facts(folder),
    }
    header = card_header(
        repo_id, license=license, base_model=base_model, datasets=list(datasets.values()), results=found
    )
    write_card(folder, repo_id, header, facts=facts, results=found)
