"""What the verbs of the command line that draw share: options, where pictures go, saving them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from ddit.commands.shared import (
    AdapterOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    FilmOption,
    GuidanceOption,
    Int8Option,
    IntervalOption,
    OffloadOption,
    RescaleOption,
    SamplerOption,
    SheetOption,
    ShiftBySizeOption,
    ShiftOption,
    StepsOption,
    check_image_path,
    check_writable,
    emit,
    filmed,
    load,
    progress,
)

if TYPE_CHECKING:
    from PIL import Image

    from ddit.inference.batching import StepCallback
    from ddit.inference.image_generator import DrawOptions
    from ddit.pipeline import Pipeline

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
COMFORTABLE_SIZE = 256
DEFAULT_BATCH_SIZE = 16

OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="a folder, or a .png, .jpg or .webp file for a single picture")
]
NumImagesOption = Annotated[int, typer.Option("--num-images", "-n", min=1, help="pictures a prompt")]


class DrawingFlags(TypedDict, total=False):
    """The options of every verb that draws; None is the model's own setting, or not."""

    upscale: Annotated[
        int | None,
        typer.Option(min=1, help=f"enlarge N times [default: to at least {COMFORTABLE_SIZE} pixels]"),
    ]
    num_steps: StepsOption
    guidance_scale: GuidanceOption
    sampler: SamplerOption
    shift: ShiftOption
    shift_by_size: ShiftBySizeOption
    guidance_interval: IntervalOption
    guidance_rescale: RescaleOption
    height: Annotated[int | None, typer.Option(help="pixels, before upscaling [default: the model's]")]
    width: Annotated[int | None, typer.Option(help="pixels, before upscaling [default: the model's]")]
    negative_prompt: Annotated[str | None, typer.Option(help="what guidance leads away from")]
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"pictures drawn at a time [default: {DEFAULT_BATCH_SIZE}]")
    ]
    adapter: AdapterOption
    int8: Int8Option
    offload: OffloadOption
    compiled: CompileOption
    sheet: SheetOption
    watch: FilmOption
    device: DeviceOption
    dtype: DtypeOption


@dataclass(frozen=True)
class Drawing:
    """One call of a verb that draws: its texts, one a picture, and where the pictures go."""

    texts: list[str]
    paths: list[Path]
    seed: int
    flags: DrawingFlags

    @classmethod
    def of(
        cls, prompts: list[str], output: Path, seed: int, flags: DrawingFlags, *, num_images: int = 1
    ) -> "Drawing":
        """Finds faults before a model is loaded: raises ValueError."""
        from ddit.diffusion.flow import ImageSampling

        ImageSampling().but(**_sampling(flags))
        texts = [prompt for prompt in prompts for _ in range(num_images)]
        paths = image_paths(output, texts, seed)
        check_image_path(flags.get("sheet"), IMAGE_SUFFIXES)
        check_image_path(flags.get("watch"), {".png", ".gif"})
        return cls(texts, paths, seed, flags)

    def spare(self, image: Path) -> None:
        """Raises ValueError if the picture to change would be written over."""
        for path in self.paths:
            if path.resolve() == image.resolve():
                raise ValueError(f"'{path}' is the picture to change itself: give another --output")

    def run(
        self,
        model: str,
        verb: "Callable[[Pipeline, DrawOptions], list[Image.Image]]",
        *,
        as_json: bool,
        strength: float = 1.0,
        about: Mapping[str, object] | None = None,
    ) -> None:
        """Loads the model, has the verb draw, saves the pictures and prints where they are; `about` goes into JSON."""
        from ddit.images import upscale_image
        from ddit.inference.image_grid import Film, image_grid

        flags, film = self.flags, Film(self.texts)
        sheet, watch = flags.get("sheet"), flags.get("watch")
        pipeline = self._load(model)
        with progress("drawing") as step:
            step = step if watch is None else filmed(film, pipeline, step)
            images = verb(pipeline, self._options(pipeline, step))
        if sheet is not None:
            image_grid(images, self.texts).save(sheet)
        if watch is not None:
            film.finish(images)
            film.save(watch, self._times(pipeline, strength))
        for i, (image, path, text) in enumerate(zip(images, self.paths, self.texts, strict=True)):
            upscale_image(image, upscale_factor(image, flags.get("upscale"))).save(path)
            emit(as_json, str(path), **about or {}, prompt=text, seed=self.seed + i, path=str(path))

    def _load(self, model: str) -> "Pipeline":
        flags = self.flags
        pipeline = load(
            model, flags.get("device"), flags.get("dtype"), adapter=flags.get("adapter"),
            int8=bool(flags.get("int8")), offload=bool(flags.get("offload")),
        )  # fmt: skip
        return pipeline.compile() if flags.get("compiled") else pipeline

    def _options(self, pipeline: "Pipeline", step: "StepCallback") -> "DrawOptions":
        flags = self.flags
        return {
            "seed": self.seed,
            "sampler": pipeline.settings.but(**_sampling(flags)),
            "height": flags.get("height"),
            "width": flags.get("width"),
            "negative_prompt": flags.get("negative_prompt"),
            "batch_size": flags.get("batch_size") or DEFAULT_BATCH_SIZE,
            "on_step": step,
        }

    def _times(self, pipeline: "Pipeline", strength: float) -> list[float]:
        """The time at the beginning of each step."""
        own_size = pipeline.settings.image_size
        height, width = (self.flags.get(side) or own_size for side in ("height", "width"))
        cfg = pipeline.settings.but(**_sampling(self.flags)).at_size(height * width, own_size**2)
        return cfg.times_from(strength)[:-1].tolist()


def _sampling(flags: DrawingFlags) -> dict[str, Any]:
    names = ("sampler", "num_steps", "guidance_scale", "shift", "shift_by_size", "guidance_interval")
    return {name: flags.get(name) for name in (*names, "guidance_rescale")}


def image_paths(output: Path, prompts: Sequence[str], seed: int) -> list[Path]:
    """Where the pictures go: the file itself, or `prompt-seed.png` in a folder; made sure that it can be written."""
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(prompts) > 1:
            raise ValueError(f"'{output}' is one file for {len(prompts)} pictures: give a folder")
        check_writable(output.parent)
        return [output]
    check_writable(output)
    slugs = [re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture" for prompt in prompts]
    return [output / f"{slug}-{seed + i}.png" for i, slug in enumerate(slugs)]


def upscale_factor(image: "Image.Image", upscale: int | None) -> int:
    """How often to enlarge a picture: as told, or until a person can see it."""
    return math.ceil(COMFORTABLE_SIZE / max(image.size)) if upscale is None else upscale
