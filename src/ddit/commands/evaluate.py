"""The verbs `ddit eval` and `ddit eval-data`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from ddit.commands import completion
from ddit.commands.completion import among
from ddit.commands.shared import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    IntervalOption,
    JsonOption,
    MaskOption,
    ModelOption,
    RescaleOption,
    SamplerOption,
    SeedOption,
    ShiftBySizeOption,
    ShiftOption,
    StepsOption,
    WritingFlags,
    check_writable,
    emit,
    load,
    spread_flags,
    uncollected,
)
from ddit.errors import near_misses

if TYPE_CHECKING:
    from ddit.eval.world_tasks import WorldSplit
    from ddit.pipeline import Pipeline

WorldOption = Annotated[
    str,
    typer.Option(
        "--world",
        help="preset of the small world: fixed-1 ... free",
        autocompletion=among(*completion.PRESETS),
    ),
]
SplitOption = Annotated[
    str,
    typer.Option(
        help="of the small world: test, heldout, val, train or detector",
        autocompletion=among(*completion.SPLITS),
    ),
]
NumOption = Annotated[int, typer.Option(min=1, help="scenes of the small world to ask about")]
# not --num: torchrun takes that for an abbreviation of an option of its own, and fails
PromptsOption = Annotated[
    int, typer.Option(min=1, help="drawing prompts a category, of the small world [92: near GenEval's 553]")
]
ScaleOption = Annotated[int, typer.Option(min=1, help="draw the small world's pictures N x 64 px large")]
WorldSeedOption = Annotated[int, typer.Option(help="of the small world's scenes and prompts")]


TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK]...",
        help="geneval, vqav2, vizwiz, gqa, pope, mme, caption [default: all]",
        autocompletion=among(*completion.TASKS),
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="folder of official files, or of one such a task [default: the small world]"),
]
ImagesOption = Annotated[
    Path | None, typer.Option(help="folder of the pictures [default: images/ in or beside the files]")
]
MetadataOption = Annotated[Path | None, typer.Option(help="GenEval's prompt file, for the task geneval")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="gets a folder a task")]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="so many prompts, questions or captions a task, for a quick look")
]
TextStepsOption = Annotated[
    int | None, typer.Option(min=1, help="of answers and captions [default: the model's]")
]
SizeOption = Annotated[
    int | None, typer.Option(min=1, help="pixels a side, drawn and read [default: the model's]")
]


def register(app: typer.Typer) -> None:
    app.command(name="eval")(spread_flags(evaluate))
    app.command(name="eval-data")(eval_data)


def _world(preset: str, split: str, num: int, num_prompts: int, seed: int, scale: int) -> "WorldSplit":
    from ddit.eval.world_tasks import WorldSplit
    from ddit.world import PRESETS, SPLITS, enlarge

    for name, value, known in (("preset", preset, PRESETS), ("split", split, SPLITS)):
        if value not in known:
            raise ValueError(f"unknown {name} '{value}': use {', '.join(known)}{near_misses(value, known)}")
    return WorldSplit(enlarge(PRESETS[preset], scale), split, num, num_prompts, seed)


def eval_data(
    folder: Annotated[Path, typer.Argument(help="gets images/ and one folder a benchmark")],
    preset: Annotated[
        str,
        typer.Option(
            help="how hard: fixed-1, fixed, fixed-3, grid, free", autocompletion=among(*completion.PRESETS)
        ),
    ] = "fixed",
    split: SplitOption = "test",
    num_scenes: NumOption = 300,
    num_prompts: PromptsOption = 92,
    seed: WorldSeedOption = 0,
    scale: ScaleOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Write scenes of the small world as evaluation sets in the official formats.

    VQAv2, VizWiz, GQA, POPE, MME, COCO captions and GenEval prompts, over one folder of pictures.
    """
    from tqdm import tqdm

    from ddit.eval.world_tasks import write_eval_data

    world = _world(preset, split, num_scenes, num_prompts, seed, scale)
    check_writable(folder)
    with tqdm(total=num_scenes, desc="drawing", unit="scene", file=sys.stderr, leave=False) as bar:
        counts = write_eval_data(folder, world, on_scene=bar.update)
    for task, count in counts.items():
        emit(
            as_json, f"{task:<8} {count:>7,}  {folder / task}", task=task, num=count, path=str(folder / task)
        )


def evaluate(
    tasks: TasksArgument = None,
    model: ModelOption = "mini",
    data: DataOption = None,
    images: ImagesOption = None,
    metadata: MetadataOption = None,
    out: OutOption = Path("runs/eval"),
    limit: LimitOption = None,
    seed: SeedOption = 0,
    num_steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    sampler: SamplerOption = None,
    shift: ShiftOption = None,
    shift_by_size: ShiftBySizeOption = None,
    guidance_interval: IntervalOption = None,
    guidance_rescale: RescaleOption = None,
    text_steps: TextStepsOption = None,
    size: SizeOption = None,
    num_samples: Annotated[int, typer.Option(min=1, help="pictures a prompt")] = 4,
    grid: Annotated[
        bool, typer.Option("--grid", help="also write a prompt's pictures into grid.png")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures or questions at a time")] = 32,
    world: WorldOption = "fixed",
    split: SplitOption = "test",
    num_scenes: NumOption = 300,
    num_prompts: PromptsOption = 92,
    world_seed: WorldSeedOption = 0,
    world_scale: ScaleOption = 1,
    mask_embedding: MaskOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    **flags: Unpack[WritingFlags],
) -> None:
    """Run benchmarks and print their table; predictions and summaries go to --out.

    On official files in --data, or on the small world. Under torchrun the processes share the samples.
    """
    with uncollected():
        from ddit.devices import join_ranks
        from ddit.diffusion.flow import ImageSampling
        from ddit.eval.evaluate import TASKS, Decoding, EvalSettings, Source
        from ddit.eval.evaluate import evaluate as run

    chosen = list(dict.fromkeys(tasks or TASKS))
    scenes = _world(world, split, num_scenes, num_prompts, world_seed, world_scale)
    source = Source(data, scenes, images, metadata)
    source.check(chosen)
    check_writable(out)
    drawing: dict[str, Any] = {
        "sampler": sampler, "num_steps": num_steps, "guidance_scale": guidance_scale, "shift": shift,
        "shift_by_size": shift_by_size, "guidance_interval": guidance_interval, "guidance_rescale": guidance_rescale,
    }  # fmt: skip
    ImageSampling().but(**drawing)  # faults, before a model is loaded
    decoded: dict[str, Any] = {"text_steps": text_steps, "size": size, **flags}
    settings = EvalSettings(seed, limit, batch_size, num_samples, grid)
    ranks = join_ranks()
    with _bars(is_quiet=not ranks.is_first) as advance:
        pipeline = load(model, device or str(ranks.device), dtype, mask_embedding=mask_embedding, adapter=adapter)
        decoding = Decoding.of(pipeline, pipeline.settings.but(**drawing), **decoded)
        about = _about(model, pipeline, adapter, mask_embedding) if ranks.is_first else {}
        if ranks.is_first and not as_json:
            _print_head(about, decoding.to_json(), seed)
        for summary in run(
            pipeline, chosen, source, out,
            decoding=decoding, settings=settings, about=about, ranks=ranks, advance=advance,
        ):  # fmt: skip
            note = [f"\n{summary.task}: {summary.note}\n"] if summary.note else []
            lines = [json.dumps(summary.to_json())] if as_json else [*summary.rows(), *note]
            typer.echo("\n".join(lines))


def _about(
    model: str, pipeline: "Pipeline", adapter: Path | None, mask_embedding: Path | None
) -> dict[str, Any]:
    import torch

    from ddit.eval.report import code_version, model_hash
    from ddit.model.folders import resolve

    extra = {"adapter": adapter, "mask_embedding": mask_embedding}
    return {
        "model": model,
        "model_hash": model_hash(resolve(model)),
        **{name: str(path) for name, path in extra.items() if path is not None},
        "commit": code_version(),
        "torch": torch.__version__,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
    }


def _print_head(about: dict[str, Any], decoding: dict[str, Any], seed: int) -> None:
    from ddit.eval.report import TABLE_HEAD

    settings = ", ".join(f"{name} {value}" for name, value in decoding.items())
    typer.echo(
        f"model {about['model']} (sha256 {about['model_hash'][:12]}, {about['dtype']}), commit {about['commit'][:12]}"
    )
    typer.echo(f"decoding: {settings}, seed {seed}\n\n{TABLE_HEAD}")


@contextmanager
def _bars(is_quiet: bool) -> Iterator[Callable[[str, int], Callable[[int], Any]]]:
    """A progress bar on stderr for each task in its turn, of the first process's own samples."""
    from tqdm import tqdm

    with ExitStack() as stack:

        def begin(task: str, total: int) -> Callable[[int], Any]:
            stack.close()
            bar = tqdm(total=total, desc=task, unit="sample", file=sys.stderr, leave=False, disable=is_quiet)
            return stack.enter_context(bar).update

        yield begin
