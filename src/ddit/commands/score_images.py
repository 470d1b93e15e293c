"""The group of verbs `ddit score-images`: benchmarks on images that any model made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddit.commands.help import VerbCommand, VerbGroup
from ddit.commands.loading import load
from ddit.commands.options import DeviceOption, Given, JsonOption, ModelOption, spread
from ddit.commands.output import check_free, check_writable
from ddit.commands.progress import progress_bar, step_bar
from ddit.eval.options import DetectorOptions
from ddit.settings import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from ddit.eval.items import Figure

score_images = typer.Typer(
    cls=VerbGroup,
    add_completion=False,
    rich_markup_mode=None,
    help="""Score images that any model made.

    Examples:
        ddit score-images geneval images --detector facebook/mask2former-swin-small-coco-instance
        ddit score-images soft-tifa images.json --data geneval2_data.jsonl --model merged
    """,
)
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel="Output", help="replace the file if it exists")
]


@score_images.command("geneval", cls=VerbCommand)
@spread
def geneval(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="images in GenEval's layout: 00000/metadata.jsonl and 00000/samples/*.png"
        ),
    ],
    *,
    options: DetectorOptions,
    device: DeviceOption = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", rich_help_panel="Output", help="GenEval's official form of results"
        ),
    ] = Path("results.jsonl"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find GenEval's objects, counts, colours and positions in a FOLDER of images.

    Prints the score and its categories, with 95 % intervals, and writes results.jsonl, which the official
    summary_scores.py reads, too.

    Examples:
        ddit score-images geneval images --detector facebook/mask2former-swin-small-coco-instance
        ddit score-images geneval images --detector mask2former --color-model clip -o mine.jsonl
    """
    if not folder.is_dir():
        raise ValueError(f"no such folder: '{folder}'")
    if options.detector is None:
        raise ValueError(
            "give --detector: facebook/mask2former-swin-small-coco-instance is GenEval's, "
            "world and wide the worlds' own"
        )
    _check_out(out, overwrite)
    from ddit.devices import find_device
    from ddit.eval.geneval import make_judge, write_results
    from ddit.eval.image_folder import list_figures, read_folder, score_folder

    judge = make_judge(options, find_device(device))
    images = read_folder(folder, judge)
    with progress_bar("scoring", "image") as advance:
        done = 0

        def on_images(count: int) -> None:
            nonlocal done
            done += count
            advance(done, len(images))

        lines = score_folder(images, judge, on_images=on_images)
    write_results(out, lines)
    _print_figures("geneval", list_figures(lines), len(lines), as_json)


ImagesArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGES", help="JSON file of {prompt: image}, or images in GenEval's layout"),
]
SeedOption = Annotated[
    int, typer.Option(rich_help_panel="Sampling", help="of the masks that texts are scored with")
]
ScoresOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FILE", rich_help_panel="Output", help="a list of scores for each prompt"
    ),
]


@score_images.command("soft-tifa", cls=VerbCommand)
@spread
def soft_tifa(
    images: ImagesArgument,
    *,
    data: Annotated[Path, typer.Option(metavar="FILE", help="GenEval 2's geneval2_data.jsonl")],
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    options: Given[ScoreOptions],
    loading: LoadOptions,
    out: ScoresOption = Path("score_lists.json"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask MODEL about each part of the prompts: Soft-TIFA of GenEval 2.

    A part's score is the probability of its right answer. The written scores are in the form that the official
    soft_tifa_analysis.py reads.

    Examples:
        ddit score-images soft-tifa images.json --data geneval2_data.jsonl --model merged
        ddit score-images soft-tifa runs/big/geneval --data geneval2_data.jsonl -o scores.json
    """
    _check_out(out, overwrite)
    from ddit.eval.answer_scores import read_atoms, read_images
    from ddit.eval.answer_scores import soft_tifa as score

    prompts, found = read_atoms(data), read_images(images)
    pipeline = load(model, loading)
    with step_bar("scoring") as on_step:
        scored = score(pipeline, prompts, found, seed=seed, on_step=on_step, **options)
    out.write_text(json.dumps(scored.scores), encoding="utf-8")
    _print_figures("soft-tifa", scored.figures, sum(map(len, found.values())), as_json)


@score_images.command("vqascore", cls=VerbCommand)
@spread
def vqascore(
    images: ImagesArgument,
    *,
    model: ModelOption = "mini",
    seed: SeedOption = 0,
    options: Given[ScoreOptions],
    loading: LoadOptions,
    out: ScoresOption = Path("score_lists.json"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask MODEL whether each image shows its prompt: VQAScore, the probability of yes.

    Examples:
        ddit score-images vqascore images.json --model merged
        ddit score-images vqascore runs/eval/geneval
    """
    _check_out(out, overwrite)
    from ddit.eval.answer_scores import read_images, vqa_score

    found = read_images(images)
    pipeline = load(model, loading)
    with step_bar("scoring") as on_step:
        scored = vqa_score(pipeline, found, seed=seed, on_step=on_step, **options)
    out.write_text(json.dumps(scored.scores), encoding="utf-8")
    _print_figures("vqascore", scored.figures, sum(map(len, found.values())), as_json)


def _check_out(file: Path, overwrite: bool) -> None:
    if not overwrite:
        check_free([file])
    check_writable(file.absolute().parent)


def _print_figures(task: str, figures: "list[Figure]", num_images: int, as_json: bool) -> None:
    from ddit.eval.report import TABLE_HEAD, Summary

    summary = Summary(task, figures, num_images, 0.0)
    typer.echo(json.dumps(summary.to_json()) if as_json else "\n".join([TABLE_HEAD, *summary.rows()]))
