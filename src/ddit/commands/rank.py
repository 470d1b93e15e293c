"""The verb `ddit rank`."""

from pathlib import Path
from typing import Annotated

import typer

from ddit.commands.shared import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaskOption,
    ModelOption,
    emit,
    load,
    progress,
)


def register(app: typer.Typer) -> None:
    app.command()(rank)


def rank(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="picture to read")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="captions, or answers to --question")],
    question: Annotated[str | None, typer.Option(help="what the texts are answers to")] = None,
    null_weight: Annotated[
        float,
        typer.Option(help="how much texts count less that are likely without the picture too; 1 is usual"),
    ] = 0.0,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="rank by nats a token: for texts of different lengths")
    ] = False,
    num_samples: Annotated[
        int, typer.Option(min=2, help="masks a text; short texts are exact with fewer")
    ] = 32,
    length: Annotated[
        int | None, typer.Option(min=1, help="positions of a text with its padding [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the masks")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="masked texts at a time")] = 32,
    model: ModelOption = "mini",
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sort TEXTs by how likely they are, given IMAGE.

    A line each, the likeliest first: probability among these texts, log-likelihood in nats and its standard error,
    text.
    """
    from ddit.images import read_image

    picture = read_image(image)
    pipeline = load(model, device, dtype, mask_embedding=mask_embedding, adapter=adapter)
    with progress("reading") as step:
        (choice,) = pipeline.choose(
            picture, texts, questions=question, per_token=per_token, null_weight=null_weight, num_samples=num_samples,
            seed=seed, length=length, batch_size=batch_size, on_step=step,
        )  # fmt: skip
    found = zip(texts, choice.probabilities, choice.scores, strict=True)
    for text, probability, score in sorted(found, key=lambda one: -one[1]):
        emit(
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
