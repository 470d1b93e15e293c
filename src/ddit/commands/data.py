"""The verbs `ddit data ...`, and `ddit world`, which makes data."""

import itertools
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ddit.commands import completion
from ddit.commands.help import VerbCommand, VerbGroup
from ddit.commands.options import JsonOption, spread
from ddit.commands.output import check_choice, check_writable, print_result, to_json
from ddit.commands.progress import progress_bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ddit.data.check import CountTokens
    from ddit.data.sources.guess import Hints

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="a JSON, tar, parquet or text file, a folder, pattern or URL of them, a folder of images, or a source's "
        "configuration",
    ),
]
KindOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="json, tar, llava, questions, huggingface, folders or text [default: guessed from the file]",
    ),
]
ImagesOption = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="folder of the images [default: the file's]")
]
AnnotationsOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="file of the answers to SOURCE's questions")
]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="another setting of the source: caption_key=alt"),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0, rich_help_panel="Performance", help="processes that read [default: one per core, at most 8]"
    ),
]

data = typer.Typer(
    cls=VerbGroup,
    add_completion=False,
    rich_markup_mode=None,
    help="""Check training data, and prepare it.

    Examples:
        ddit data check train.json --images photos
        ddit data precompute train.json latents --vae mini --size 64
    """,
)


@data.command(cls=VerbCommand)
@spread
def check(
    path: SourceArgument,
    kind: KindOption = None,
    images: ImagesOption = None,
    questions: Annotated[
        bool, typer.Option("--questions", help="the file holds questions: the same as --kind questions")
    ] = False,
    annotations: AnnotationsOption = None,
    fields: FieldsOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="number of samples to read, evenly spread [default: all]")
    ] = None,
    length: Annotated[
        int,
        typer.Option(
            min=2, help="tokens that the run keeps of a text (data.t2i_length): longer ones are counted"
        ),
    ] = 64,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="the run's text encoder, whose tokenizer counts the tokens: mini, a model folder or a hub id "
            "[default: every word is one token, which is fewer than there are]",
        ),
    ] = None,
    num_workers: WorkersOption = None,
    max_corrupt_share: Annotated[
        float, typer.Option(min=0, max=1, help="the exit code is 1 above this share of corrupt samples")
    ] = 0.02,
    as_json: JsonOption = False,
) -> None:
    """Read every sample of SOURCE once and report what training would meet.

    Examples:
        ddit data check train.json --images photos
        ddit data check "shards/*.tar" --limit 1000 --text mini --json
    """
    from ddit.data.check import Fit, check_source
    from ddit.data.sources.guess import guess_source

    hints = _hints("questions" if questions else kind, images, annotations, fields)
    workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
    source = guess_source(path, hints)
    fit = Fit(length, None if text is None else _token_counter(text))
    with progress_bar("reading", "sample") as advance:
        report = check_source(source, limit=limit, num_workers=workers, fit=fit, on_progress=advance)
    typer.echo(to_json(report.to_json()) if as_json else "\n".join(report.lines()))
    if report.corrupt_share > max_corrupt_share:
        found, most = 100 * report.corrupt_share, 100 * max_corrupt_share
        typer.echo(f"ddit: {found:.2f} % of the samples are corrupt, {most:g} % may be", err=True)
        raise typer.Exit(1)


@data.command(cls=VerbCommand)
@spread
def precompute(
    path: SourceArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", rich_help_panel="Output", help="folder of the latents, for the source's `latents`"
        ),
    ],
    vae: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="the run's autoencoder: mini, a model folder, a hub id, or a vae folder"
        ),
    ],
    size: Annotated[int, typer.Option(min=1, help="side of the square, or root of the buckets' area")] = 256,
    buckets: Annotated[int, typer.Option(min=1, help="aspect ratios (data.num_buckets)")] = 1,
    unit: Annotated[
        int, typer.Option(min=1, help="multiple of the buckets' sides: down-sampling times patch size")
    ] = 16,
    kind: KindOption = None,
    images: ImagesOption = None,
    annotations: AnnotationsOption = None,
    fields: FieldsOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="weights of a teacher, whose features are kept for alignment"),
    ] = None,
    shard_size: Annotated[
        int, typer.Option(min=1, rich_help_panel="Output", help="samples of a file")
    ] = 1000,
    batch_size: Annotated[
        int, typer.Option(min=1, rich_help_panel="Performance", help="images read at a time")
    ] = 32,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            metavar="DTYPE",
            rich_help_panel="Performance",
            help="of the autoencoder: float32, bfloat16, or auto, which is bfloat16 on a GPU",
        ),
    ] = "auto",
    num_workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode every image of SOURCE once, so that training runs no autoencoder.

    Resumes an interrupted run. Under torchrun (`torchrun --nproc-per-node 8 -m ddit data precompute ...`) the processes
    share the work.

    Examples:
        ddit data precompute train.json latents --vae mini --size 64
        ddit data precompute "shards/*.tar" latents --vae stable-diffusion-3-medium-diffusers --size 512 --buckets 9
    """
    from ddit.config.runs import LatentsRun
    from ddit.data.latents import LatentFolder
    from ddit.data.sources.guess import guess_source
    from ddit.devices import join_ranks
    from ddit.train.precompute import precompute as make

    source = guess_source(path, _hints(kind, images, annotations, fields))
    cfg = LatentsRun(
        out=str(out), vae=vae, source=source, teacher=teacher, image_size=size, num_buckets=buckets, bucket_unit=unit,
        shard_size=shard_size, batch_size=batch_size, compute_dtype=dtype,
    )  # fmt: skip
    ranks = join_ranks()
    num_samples = len(LatentFolder(make(cfg, ranks, num_workers=num_workers)))
    if ranks.is_first:
        print_result(as_json, str(out), path=str(out), num=num_samples)


def _token_counter(text: str) -> "CountTokens":
    """Counts as the tokenizer of a model's text encoder does; `ValueError` if there is none."""
    from tokenizers import Tokenizer

    from ddit.model.folders import is_sd3_folder, resolve

    folder = resolve(text)
    path = folder / ("tokenizer_3" if is_sd3_folder(folder) else "tokenizer") / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"'{path}' does not exist: --text takes the folder that the run's `text` or `init` names"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return partial(_count_tokens, tokenizer)


def _count_tokens(tokenizer: "Tokenizer", text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def _hints(
    kind: str | None, images: str | None, annotations: str | None, fields: list[str] | None
) -> "Hints":
    from ddit.data.sources.guess import Hints

    pairs = [field.partition("=") for field in fields or []]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError(f"--set takes KEY=VALUE, got {' '.join(fields or [])}")
    return Hints(kind, images, annotations, tuple((key, value) for key, _, value in pairs))


@spread
def world(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", rich_help_panel="Output", help="folder of the images and their texts"
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            rich_help_panel="Output",
            help="scenes (images, and what each shows), json, tar, llava, questions or parquet",
            autocompletion=completion.among(*completion.FORMS),
        ),
    ] = "scenes",
    preset: Annotated[
        str,
        typer.Option(
            help="how hard: fixed-1 ... free; of the wide world: wide-easy ... wide-128",
            autocompletion=completion.all_presets,
        ),
    ] = "fixed",
    split: Annotated[
        str,
        typer.Option(help="train, val, test, heldout or detector", autocompletion=completion.splits),
    ] = "train",
    num: Annotated[int, typer.Option(min=1, help="number of scenes")] = 16,
    seed: Annotated[int, typer.Option(help="of the world")] = 0,
    upscale: Annotated[
        int,
        typer.Option(
            min=1, rich_help_panel="Output", help="enlarge N times; the truth's boxes stay in 64 px"
        ),
    ] = 1,
    jpeg: Annotated[
        bool,
        typer.Option(
            "--jpeg", rich_help_panel="Output", help="images as JPEG (questions always are) [default: PNG]"
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write scenes of the small world, or of the wide one, as files.

    As a reference, or as training files of a common form; prints the path that `ddit data check` takes. The wide world
    has the form scenes alone, and is trained on without files.

    Examples:
        ddit world scenes --num 8 --preset grid
        ddit world scenes --num 8 --preset wide
        ddit world train --form tar --num 1000 --jpeg
    """
    path = _write_world(folder, form, preset, split, num, seed, upscale, jpeg)
    print_result(as_json, str(path), path=str(path), num=num)


def _write_world(
    folder: Path, form: str, preset: str, split: str, num: int, seed: int, upscale: int, jpeg: bool
) -> Path:
    from ddit.data.wide_files import write_wide_world
    from ddit.data.world_files import FORMS, WorldScenes, write_world
    from ddit.world import PRESETS, SPLITS
    from ddit.world.wide import WIDE_PRESETS

    check_choice("preset", preset, {**PRESETS, **WIDE_PRESETS})
    check_choice("split", split, SPLITS)
    check_choice("form", form, FORMS)
    is_wide = preset in WIDE_PRESETS
    if is_wide and (form != "scenes" or upscale != 1 or jpeg):
        raise ValueError(
            f"the preset {preset} is written as scenes in PNG alone, without --form, --upscale and --jpeg"
        )
    check_writable(folder)
    with progress_bar("rendering", "scene") as advance:
        count = itertools.count(1)

        def on_scene() -> None:
            advance(next(count), num)

        if is_wide:
            path = write_wide_world(folder, WIDE_PRESETS[preset], split, num, seed=seed, on_scene=on_scene)
        else:
            scenes = WorldScenes(PRESETS[preset], split, num, seed=seed, upscale=upscale, jpeg=jpeg)
            path = write_world(folder, scenes, form, on_scene=on_scene)
    return path
