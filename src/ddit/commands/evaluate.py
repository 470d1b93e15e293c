"""The verbs `ddit eval` and `ddit eval-data`."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddit.commands import completion
from ddit.commands.loading import load, paused_gc
from ddit.commands.options import Given, JsonOption, ModelOption, spread
from ddit.commands.output import check_choice, check_writable, print_result
from ddit.commands.progress import progress_bar
from ddit.eval.options import TASKS, WIDE_TASKS, DetectorOptions, EvalOptions
from ddit.settings import ImageSampling, LoadOptions, ModelSettings, TextSampling

if TYPE_CHECKING:
    from ddit.eval.evaluate import World
    from ddit.eval.geneval import Judge
    from ddit.pipeline import Pipeline

TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK",
        help=f"{', '.join(TASKS)}; of the wide world {', '.join(WIDE_TASKS)} [default: all]",
        autocompletion=completion.among(*TASKS, *WIDE_TASKS[1:]),
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="folder of official files, or with a subfolder per task [default: the small world]",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="folder of the images [default: images/ in or beside the files]"),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        rich_help_panel="Sampling",
        help="tokens of an answer or caption, with padding [default: the model's]",
    ),
]
WorldOption = Annotated[
    str,
    typer.Option(
        help="preset of the small world, fixed-1 ... free, or of the wide one, wide ...",
        autocompletion=completion.all_presets,
    ),
]
SplitOption = Annotated[
    str,
    typer.Option(
        help="split of the world: test, heldout, val, train or detector",
        autocompletion=completion.splits,
    ),
]
NumOption = Annotated[int, typer.Option(min=1, help="scenes to ask about, of the wide world in each section")]
# not --num: torchrun takes that for an abbreviation of an option of its own, and fails
PromptsOption = Annotated[
    int,
    typer.Option(min=1, help="prompts per category of GenEval, from the world; 92 give about GenEval's 553"),
]
ScaleOption = Annotated[int, typer.Option(min=1, help="side of the world's images, times 64 px")]
WorldSeedOption = Annotated[int, typer.Option(help="seed of the world's scenes and prompts")]


@spread
def eval_data(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            rich_help_panel="Output",
            help="folder that gets images/ and one folder per benchmark",
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="how hard: fixed-1, fixed, fixed-3, grid, free; wide, wide-128, ...",
            autocompletion=completion.all_presets,
        ),
    ] = "fixed",
    split: SplitOption = "test",
    num_scenes: NumOption = 300,
    num_prompts: PromptsOption = 92,
    seed: WorldSeedOption = 0,
    scale: ScaleOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Write evaluation sets of a world.

    Of the small world in the official formats: VQAv2, VizWiz, GQA, POPE, MME, COCO captions and GenEval prompts, over
    one folder of images. Of the wide world questions, requests for descriptions, and GenEval prompts.

    Examples:
        ddit eval-data world-eval --num-scenes 20 --num-prompts 4
        ddit eval-data world-eval --split heldout --scale 2
        ddit eval-data wide-eval --preset wide --num-scenes 20
    """
    from ddit.eval.evaluate import write_world

    world = _world(preset, split, num_scenes, num_prompts, seed, scale)
    check_writable(folder)
    with progress_bar("rendering", "scene") as advance:
        scenes = itertools.count(1)
        counts = write_world(folder, world, on_scene=lambda: advance(next(scenes), num_scenes))
    for task, count in counts.items():
        path = folder / task
        print_result(as_json, f"{task:<11} {count:>7,}  {path}", task=task, num=count, path=str(path))


def _world(preset: str, split: str, num: int, num_prompts: int, seed: int, scale: int) -> "World":
    from ddit.eval.wide_world import WideSplit
    from ddit.eval.world_tasks import WorldSplit
    from ddit.world import PRESETS, SPLITS, enlarge
    from ddit.world.wide import WIDE_PRESETS

    check_choice("preset", preset, [*PRESETS, *WIDE_PRESETS])
    check_choice("split", split, SPLITS)
    if preset in WIDE_PRESETS:
        config = WIDE_PRESETS[preset]
        return WideSplit(replace(config, size=scale * config.size), split, num, num_prompts, seed)
    return WorldSplit(enlarge(PRESETS[preset], scale), split, num, num_prompts, seed)


MetadataOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="GenEval's prompt file, for the task geneval")
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", rich_help_panel="Output", help="folder; each task gets a subfolder"
    ),
]


@spread
def evaluate(
    tasks: TasksArgument = None,
    *,
    model: ModelOption = "mini",
    data: DataOption = None,
    images: ImagesOption = None,
    metadata: MetadataOption = None,
    out: OutOption = Path("runs/eval"),
    options: EvalOptions,
    detector_options: DetectorOptions,
    image_sampling: Given[ImageSampling],
    text_sampling: Given[TextSampling],
    length: LengthOption = None,
    world: WorldOption = "fixed",
    split: SplitOption = "test",
    num_scenes: NumOption = 300,
    num_prompts: PromptsOption = 92,
    world_seed: WorldSeedOption = 0,
    world_scale: ScaleOption = 1,
    loading: LoadOptions,
    as_json: JsonOption = False,
) -> None:
    """Run benchmarks and print their table.

    On official files in --data, or on a world; predictions and summaries go to --out. Under torchrun the
    processes share the samples.

    Examples:
        ddit eval geneval vqav2 --limit 20
        ddit eval geneval --detector facebook/mask2former-swin-small-coco-instance --metadata evaluation_metadata.jsonl
        ddit eval pope --data coco --images coco/val2014 --model merged --out runs/pope
        ddit eval --world wide --num-scenes 1000 --num-prompts 125
    """
    with paused_gc():
        from ddit.devices import join_ranks
        from ddit.eval.evaluate import EvalData, describe_decoding, list_tasks, name_detector
        from ddit.eval.evaluate import evaluate as run

    scenes = _world(world, split, num_scenes, num_prompts, world_seed, world_scale)
    chosen = list(dict.fromkeys(tasks or list_tasks(scenes)))
    eval_data = EvalData(data, scenes, images, metadata)
    eval_data.check(chosen)
    check_writable(out)
    changes = {**image_sampling, **text_sampling, "caption_length": length, "answer_length": length}
    ModelSettings().with_defaults(changes)  # faults are found before a model is loaded
    ranks = join_ranks()
    with _task_bars(is_quiet=not ranks.is_first) as start_task:
        judge = _judge(detector_options, chosen, name_detector(scenes), loading.device or str(ranks.device))
        pipeline = load(model, replace(loading, device=loading.device or str(ranks.device)))
        pipeline.settings = pipeline.settings.with_defaults(changes)
        about = _about(model, pipeline, loading, detector_options) if ranks.is_first else {}
        if ranks.is_first and not as_json:
            _print_head(about, describe_decoding(pipeline.settings, options), options.seed)
        given: dict[str, Any] = {"options": options, "judge": judge, "about": about, "ranks": ranks}
        remarks = []
        for summary in run(pipeline, chosen, eval_data, out, **given, start_task=start_task):
            typer.echo("\n".join([json.dumps(summary.to_json())] if as_json else summary.rows()))
            remarks += summary.remarks()
        if remarks and not as_json:
            typer.echo("\n" + "\n".join(remarks))


def _judge(options: DetectorOptions, tasks: list[str], default: str, device: str) -> "Judge | None":
    """GenEval's judge, loaded before anything is generated; None where it is not needed."""
    if "geneval" not in tasks:
        if options.detector is not None:
            raise ValueError("--detector is for the task geneval")
        return None
    from ddit.eval.geneval import make_judge

    return make_judge(replace(options, detector=options.detector or default), device)


def _about(
    model: str, pipeline: "Pipeline", loading: LoadOptions, detector: DetectorOptions
) -> dict[str, Any]:
    import torch

    from ddit.eval.report import code_version, model_hash
    from ddit.model.folders import resolve

    files = {"adapter": loading.adapter, "mask_embedding": loading.mask_embedding}
    return {
        "model": model,
        "model_hash": model_hash(resolve(model)),
        **{name: str(path) for name, path in files.items() if path is not None},
        "commit": code_version(),
        "torch": torch.__version__,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **({"int8": True} if loading.int8 else {}),
        **({} if detector.detector is None else {"geneval_detector": asdict(detector)}),
    }


def _print_head(about: dict[str, Any], decoding: dict[str, Any], seed: int) -> None:
    from ddit.eval.report import TABLE_HEAD

    settings = ", ".join(f"{name} {value}" for name, value in decoding.items())
    typer.echo(
        f"model {about['model']} (sha256 {about['model_hash'][:12]}, {about['dtype']}), commit {about['commit'][:12]}"
    )
    typer.echo(f"decoding: {settings}, seed {seed}\n\n{TABLE_HEAD}")


@contextmanager
def _task_bars(is_quiet: bool) -> Iterator[Callable[[str, int], Callable[[int], Any]]]:
    """A progress bar on stderr for each task in its turn, of the first process's own samples."""
    with ExitStack() as stack:

        def begin(task: str, total: int) -> Callable[[int], Any]:
            stack.close()
            advance, done = stack.enter_context(progress_bar(task, "sample")), 0

            def update(count: int) -> None:
                nonlocal done
                done += count
                if not is_quiet:
                    advance(done, total)

            return update

        yield begin
