"""What verbs that generate images write: the images, an image of all of them, the sampling steps."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ddit.commands.output import (
    IMAGE_SUFFIXES,
    check_free,
    check_image_path,
    check_writable,
    print_result,
)
from ddit.commands.progress import print_note, step_bar
from ddit.schema import strict
from ddit.settings import ModelSettings

if TYPE_CHECKING:
    from PIL import Image

    from ddit.inference.batching import Step, StepCallback
    from ddit.inference.image_grid import Film
    from ddit.pipeline import Pipeline

FILE_SUFFIXES = re.compile(
    r"\.(a?png|avif|bmp|eps|gif|hei[cf]|ico|jfif|jp2|jxl|pdf|p[gpn]m|psd|svg|tga|tiff?|mp4|mov|webm|mkv|avi"
    r"|zip|tar|jsonl?|txt|md|csv|html?|np[yz]|pt|safetensors)$",
    re.IGNORECASE,
)
"""Endings of files that an output folder hardly has."""

VIEW_SIZE = 256
"""Pixels of the longer side to which small images are enlarged, to be looked at."""


@strict
class ImageFiles:
    """Where a verb's images go, and in what form."""

    panel: ClassVar[str] = "Output"

    output: Annotated[
        Path,
        Field(
            description="folder, where each image is PROMPT-SEED.png, named after its own seed; "
            "or a .png, .jpg or .webp file for a single image [default: the current folder]"
        ),
    ] = Path()
    num_images: Annotated[int, Field(ge=1, description="images for each prompt")] = 1
    upscale: Annotated[
        int | None, Field(ge=1, description=f"enlarge N times [default: to at least {VIEW_SIZE} pixels]")
    ] = None
    overwrite: Annotated[bool, Field(description="replace files that exist")] = False
    grid: Annotated[
        Path | None, Field(description="also write all images into one file, each above its prompt")
    ] = None
    watch: Annotated[
        Path | None,
        Field(description="also write the sampling steps: side by side (.png) or as an animation (.gif)"),
    ] = None


class ImageJob:
    """One call of a verb that generates images. Faults are found when it is made, before a model is loaded.

    Attributes:
        texts, paths: a prompt and a file for each image.
        original: the image to be changed, which is never overwritten.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        seed: int,
        files: ImageFiles,
        options: Mapping[str, Any],
        *,
        original: Path | None = None,
    ) -> None:
        ModelSettings().image_options(options)
        self.texts = [prompt for prompt in prompts for _ in range(files.num_images)]
        self.paths = image_paths(files.output, self.texts, seed)
        check_image_path(files.grid, IMAGE_SUFFIXES)
        check_image_path(files.watch, {".png", ".gif"})
        if original is not None and original.resolve() in [path.resolve() for path in self.paths]:
            raise ValueError(f"'{original}' is the input image: give another --output")
        if not files.overwrite:
            extra = [path for path in (files.grid, files.watch) if path is not None]
            check_free([*self.paths, *extra], ", another --output or another --seed")
        self.seed, self.files, self.options = seed, files, options
        self._film: Film | None = None

    @contextmanager
    def progress(self, pipeline: "Pipeline") -> "Iterator[StepCallback]":
        """A progress bar; keeps the image that each step predicts, if the steps are to be written."""
        with step_bar("generating") as advance:
            if self.files.watch is None:
                yield advance
                return
            from ddit.inference.image_grid import Film

            self._film = film = Film(self.texts)

            def on_step(step: "Step") -> None:
                advance(step)
                film.add(step.rows, pipeline.decode(step.state.clean))

            yield on_step

    def save(
        self,
        pipeline: "Pipeline",
        images: "Sequence[Image.Image]",
        *,
        as_json: bool,
        strength: float = 1.0,
        about: Mapping[str, object] | None = None,
    ) -> None:
        """Writes the images and prints where they are; `about` goes into the JSON."""
        from ddit.images import upscale_image
        from ddit.inference.image_grid import image_grid

        files = self.files
        if files.grid is not None:
            image_grid(images, self.texts).save(files.grid)
        if self._film is not None and files.watch is not None:
            self._film.finish(images)
            self._film.save(files.watch, step_times(pipeline.settings, self.options, strength))
        for i, (image, path, text) in enumerate(zip(images, self.paths, self.texts, strict=True)):
            upscale_image(image, upscale_factor(image, files.upscale)).save(path)
            print_result(as_json, str(path), **about or {}, prompt=text, seed=self.seed + i, path=str(path))
        count = "1 image" if len(images) == 1 else f"{len(images)} images"
        print_note(f"wrote {count} to {self.paths[0].parent.absolute()}")


def step_times(settings: ModelSettings, options: Mapping[str, Any], strength: float) -> list[float]:
    """The time at the beginning of each step."""
    from ddit.diffusion.flow import sampling_times

    call = settings.image_options(options)
    height, width = call.size.height or settings.image_size, call.size.width or settings.image_size
    sampling = call.sampling.at_size(height * width, settings.image_size**2)
    return sampling_times(sampling, strength)[:-1].tolist()


def image_paths(output: Path, prompts: Sequence[str], seed: int) -> list[Path]:
    """Where the images go: the file itself, or `prompt-seed.png` in a folder; checked that it can be written."""
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(prompts) > 1:
            raise ValueError(f"'{output}' is one file for {len(prompts)} images: give a folder")
        check_writable(output.parent)
        return [output]
    if FILE_SUFFIXES.search(output.name) and not output.is_dir():
        raise ValueError(
            f"'{output}': images are written as .png, .jpg or .webp; a folder has no such ending"
        )
    check_writable(output)
    slugs = [re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "image" for prompt in prompts]
    return [output / f"{slug}-{seed + i}.png" for i, slug in enumerate(slugs)]


def upscale_factor(image: "Image.Image", upscale: int | None) -> int:
    """How often to enlarge an image: as asked for, or until a person can see it."""
    return math.ceil(VIEW_SIZE / max(image.size)) if upscale is None else upscale
