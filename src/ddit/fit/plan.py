"""What a fit is asked for, what it finds in the data, and what it plans, as its files hold them. Needs no torch."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ddit.config.data import SourceConfig
from ddit.config.runs import RunConfig
from ddit.schema import Panel, strict

AnyRun = Annotated[RunConfig, Field(discriminator="kind")]


@strict
class FitOptions:
    """What is asked for beside the sources and the folder."""

    panel: ClassVar[str] = "Training"

    questions: Annotated[
        tuple[str, ...],
        Field(
            description="questions and answers about images, any number of times: any file that SOURCE may be"
        ),
        Panel("Input"),
    ] = ()
    annotations: Annotated[
        tuple[str, ...],
        Field(
            description="the file of answers to --questions in VQAv2's form of two files, one for each of them"
        ),
        Panel("Input"),
    ] = ()
    images: Annotated[
        str | None,
        Field(description="folder of the images that files name [default: the file's]"),
        Panel("Input"),
    ] = None
    text_alone: Annotated[
        tuple[str, ...],
        Field(description="texts without images, any number of times: a text, CSV, JSON or parquet file"),
        Panel("Input"),
    ] = ()
    templates: Annotated[
        str | None,
        Field(description="file of captions for class folders, one a line: a photo of {article} {name}"),
        Panel("Input"),
    ] = None
    held_out: Annotated[
        tuple[str, ...],
        Field(
            description="the share of the images that is never trained on, or sources to be judged by, any number of "
            "times [default: 0.05]"
        ),
        Panel("Input"),
    ] = ()
    hours: Annotated[
        float | None,
        Field(gt=0, description="time for all of it [default: the preset's; xs 0.25, s 3, m 24, l 12]"),
    ] = None
    size: Annotated[
        int | None,
        Field(
            ge=16,
            le=512,
            description="side of the images in pixels [default: by the images; 32 to 64 on a CPU]",
        ),
    ] = None
    preset: Annotated[
        Literal["xs", "s", "m", "l"] | None,
        Field(description="size of the model [default: by the hours and the number of images; l on a GPU]"),
    ] = None
    vae: Annotated[
        str | None,
        Field(
            description="folder or hub id of a diffusers AutoencoderKL or AutoencoderTiny [default: a small one]"
        ),
    ] = None
    text: Annotated[
        str | None,
        Field(description="folder or hub id of a T5 encoder with its tokenizer [default: a small one]"),
    ] = None
    keep_sides: Annotated[bool, Field(description="never mirror an image: for letters, digits, signs")] = (
        False
    )
    seed: Annotated[int, Field(ge=0, description="of weights, order and noise")] = 0


@strict
class Request:
    """The call: sources, folder and options. The same one on the same folder resumes it."""

    sources: tuple[str, ...]
    out: str
    base: str | None = None
    options: FitOptions = field(default_factory=FitOptions)


@strict
class SourceFindings:
    """What one source holds.

    Attributes:
        name: its path, as it was given.
        role: `images` with captions (or classes), `questions` about images, or `text` alone.
        num_samples: in all. num_read: of these, evenly spread; all other numbers are of what was read.
        corrupt: samples that cannot be used, by cause.
        num_images: distinct ones. num_repeated, num_near: samples whose image is there already, or looks nearly so.
        num_across: held-out ones that look nearly like one that is trained on. num_conflicting: equal images of two
            classes.
        width, height: pixels, least, median and greatest; aspect: width by height, likewise.
        classes: images by class, of class folders.
        num_held_out: samples that are never trained on; of all, not of those read.
        lines: the whole report for people.
    """

    name: str
    role: Literal["images", "questions", "text"]
    num_samples: int
    num_read: int
    corrupt: dict[str, int] = field(default_factory=dict)
    num_images: int = 0
    num_repeated: int = 0
    num_near: int = 0
    num_across: int = 0
    num_conflicting: int = 0
    num_captions: int = 0
    num_questions: int = 0
    width: tuple[float, float, float] | None = None
    height: tuple[float, float, float] | None = None
    aspect: tuple[float, float, float] | None = None
    classes: dict[str, int] = field(default_factory=dict)
    num_held_out: int = 0
    lines: tuple[str, ...] = ()

    @property
    def num_corrupt(self) -> int:
        return sum(self.corrupt.values())


@strict
class Findings:
    """What all sources hold together.

    Attributes:
        num_images: distinct images of all sources. num_held_out_images: of these, never trained on.
        text_length: tokens, at least so many, that all texts but the longest few need.
        seconds: that reading took.
    """

    sources: tuple[SourceFindings, ...]
    held_out: tuple[SourceFindings, ...] = ()
    num_images: int = 0
    num_held_out_images: int = 0
    text_length: int = 32
    seconds: float = 0.0

    @property
    def num_corrupt(self) -> int:
        return sum(source.num_corrupt for source in self.sources)

    @property
    def num_captions(self) -> int:
        return sum(source.num_captions for source in self.sources)

    @property
    def num_questions(self) -> int:
        return sum(source.num_questions for source in self.sources)

    @property
    def classes(self) -> dict[str, int]:
        """Images by class, over all sources of class folders."""
        found: dict[str, int] = {}
        for source in self.sources:
            for name, count in source.classes.items():
                found[name] = found.get(name, 0) + count
        return found


@strict
class Stage:
    """One run of the plan: its name (the last part of its folder), what it does, and what it is expected to take."""

    name: str
    what: str
    steps: int
    seconds: float


@strict
class FitPlan:
    """What a fit does.

    Attributes:
        out: the folder of everything. The model is in `out/model`, the runs are in `out/runs`.
        preset: xs, s, m or l (`ddit.recipes.small.SMALL_SIZES`); with `base` the one whose batches it has.
        base: the model that is tuned; None: from nothing.
        image_size: pixels a side. num_views: of each image, see `ddit.data.views`.
        hours: of the whole. report_seconds: of them, kept for figures and model card.
        device: the machine, in words. flops: FLOP/s that training is expected to keep up here.
        train: the sources that are trained on, with their cached latents. held_out: those that figures are made with,
            never trained on.
        runs: in their order; `stages` are the same ones for people.
        warnings: what is too small or too little for what is asked, in a line each.
    """

    out: str
    preset: str
    image_size: int
    num_views: int
    hours: float
    report_seconds: float
    device: str
    flops: float
    seed: int
    train: tuple[SourceConfig, ...]
    held_out: tuple[SourceConfig, ...]
    runs: tuple[AnyRun, ...]
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()
    base: str | None = None

    @property
    def model_folder(self) -> Path:
        return Path(self.out) / "model"


@strict
class Outcome:
    """How a fit went.

    Attributes:
        seconds, steps: of each stage by name.
        chosen: the run whose averaged weights the model has, after `chosen_step` steps, and their held-out cost
            (`ddit.train.heldout.held_out_cost`); None where nothing was measured.
    """

    seconds: dict[str, float]
    steps: dict[str, int]
    chosen: str
    chosen_step: int
    chosen_cost: float | None = None
