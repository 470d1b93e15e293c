"""The verb `ddit rank`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.loading import load
from ddit.commands.options import Given, JsonOption, ModelOption, spread
from ddit.commands.output import print_result
from ddit.commands.progress import step_bar
from ddit.schema import override
from ddit.settings import LoadOptions, ScoreOptions


@spread
def rank(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="image to look at")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="captions, or answers to --question")],
    *,
    question: Annotated[str | None, typer.Option(help="what the texts are answers to")] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="rank by nats per token: for texts of different lengths")
    ] = False,
    model: ModelOption = "mini",
    seed: Annotated[
        int, typer.Option(rich_help_panel="Sampling", help="of the masks that texts are scored with")
    ] = 0,
    as_json: JsonOption = False,
    options: Given[ScoreOptions],
    loading: LoadOptions,
) -> None:
    """Sort TEXTs by how likely they are, given IMAGE.

    One line per text, the most likely first: probability among these texts, log-likelihood in nats and its standard
    error, text.

    Examples:
        ddit rank car.png "a photo of a red car" "a photo of a blue car"
        ddit rank car.png red blue green --question "what color is the car?"
    """
    from ddit.images import read_image

    source = read_image(image)
    override(ScoreOptions(), options)
    pipeline = load(model, loading)
    with step_bar("scoring") as on_step:
        (choice,) = pipeline.choose(
            source, texts, questions=question, per_token=per_token, seed=seed, on_step=on_step, **options
        )
    found = zip(texts, choice.probabilities, choice.scores, strict=True)
    for text, probability, score in sorted(found, key=lambda one: -one[1]):
        print_result(
            as_json,
            f"{probability:.3f}\t{score.log_prob:.2f} ± {score.standard_error:.2f}\t{text}",
            image=str(image),
            question=question,
            text=text,
            probability=probability,
            log_prob=score.log_prob,
            standard_error=score.standard_error,
            num_tokens=score.num_tokens,
        )
