"""GenEval's mean on the small world against evaluations of the model: `python benchmarks/image_sweep.py`.

Every combination of the samplers, steps, guidance scales, shifts and guidance intervals generates the same prompts from
the same noise; the world's detector scores the images. The published setting is one more row. What --results already
holds of the same weights is not done again, so that a sweep can be stopped and extended. Writes image_sweep.md, .png.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ddit.diffusion.flow import num_evaluations
from ddit.eval.geneval import score_images, tally_categories
from ddit.eval.report import code_version, model_hash
from ddit.model.folders import resolve
from ddit.pipeline import Pipeline
from ddit.settings import ImageSampling
from ddit.world import PRESETS, TAGS, Prompt, make_prompts

HERE = Path(__file__).parent
SAMPLERS = ("euler", "adams", "dpm")
COLUMNS = (
    "sampler",
    "steps",
    "guidance",
    "shift",
    "interval",
    "rescale",
    "evaluations",
    "GenEval",
    "s / image",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default="mini")
    add("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    add("--steps", nargs="+", type=int, default=[4, 6, 8, 12, 20])
    add("--guidance", nargs="+", type=float, default=[3.0, 5.0])
    add("--shifts", nargs="+", type=float, default=[1.0, 2.0, 3.0])
    add(
        "--intervals", nargs="+", type=interval, default=[(0.0, 1.0), (0.3, 1.0), (0.0, 0.8)], help="LOW:HIGH"
    )
    add("--rescales", nargs="+", type=float, default=[0.0])
    add("--no-paper", action="store_true", help="leave the published setting out")
    add("--prompts", type=int, default=8, help="a category, of six")
    add("--seeds", nargs="+", type=int, default=[0], help="an image of each prompt a seed")
    add("--preset", default="fixed", choices=sorted(PRESETS))
    add("--split", default="val", help="of the world; defaults are not chosen on the test split")
    add("--batch-size", type=int, default=32)
    add("--results", type=Path, default=Path("runs/image_sweep.jsonl"))
    add("--out", type=Path, default=HERE, help="gets image_sweep.md and .png")
    return parser.parse_args()


def interval(text: str) -> tuple[float, float]:
    low, high = (float(value) for value in text.split(":"))
    return low, high


def settings(options: argparse.Namespace) -> list[ImageSampling]:
    grid = product(
        options.samplers, options.steps, options.guidance, options.shifts, options.intervals, options.rescales
    )
    found = [
        ImageSampling(
            sampler=sampler, num_steps=steps, guidance_scale=guidance, shift=shift, guidance_interval=ends,
            guidance_rescale=rescale,
        )
        for sampler, steps, guidance, shift, ends, rescale in grid
    ]  # fmt: skip
    return list(dict.fromkeys(found if options.no_paper else [ImageSampling(), *found]))


def measure(
    pipeline: Pipeline, cfg: ImageSampling, prompts: list[Prompt], options: argparse.Namespace
) -> dict[str, Any]:
    """Shares of right images of one setting, each category's and their mean; and the seconds of sampling."""
    tags, right, seconds = [], [], 0.0
    for seed in options.seeds:
        start = time.perf_counter()
        images = pipeline.generate(
            [prompt.text for prompt in prompts],
            seed=seed * len(prompts),  # sample i has the noise of seed + i
            batch_size=options.batch_size,
            **asdict(cfg),
        )
        seconds += time.perf_counter() - start
        right += [found.correct for found in score_images(prompts, images)]
        tags += [prompt.tag for prompt in prompts]
    figures = {figure.name: figure.value for figure in tally_categories(tags, right)}
    return {"shares": figures, "images": len(tags), "seconds": seconds}


def key_of(cfg: ImageSampling, weights: str, options: argparse.Namespace) -> str:
    of = ("prompts", "seeds", "preset", "split")
    return json.dumps([asdict(cfg), weights, {name: getattr(options, name) for name in of}], sort_keys=True)


def run(options: argparse.Namespace) -> list[tuple[ImageSampling, dict[str, Any]]]:
    options.results.parent.mkdir(parents=True, exist_ok=True)
    lines = options.results.read_text().splitlines() if options.results.is_file() else []
    done = {entry["key"]: entry for entry in map(json.loads, lines)}
    pipeline = Pipeline.from_pretrained(options.model)
    weights = model_hash(resolve(options.model))
    prompts = make_prompts(PRESETS[options.preset], options.prompts, split=options.split, seed=0)
    rows = []
    for cfg in settings(options):
        key = key_of(cfg, weights, options)
        if key not in done:
            done[key] = {"key": key, **measure(pipeline, cfg, prompts, options)}
            with options.results.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        rows.append((cfg, done[key]))
        print(" | ".join(cells(cfg, done[key])), flush=True)
    return rows


def name_of(cfg: ImageSampling) -> str:
    return "paper" if cfg == ImageSampling() else cfg.sampler


def half_width(entry: dict[str, Any]) -> float:
    """Half of the 95 % interval of a mean of categories' shares, each of equally many images."""
    shares = [entry["shares"][tag] for tag in TAGS if tag in entry["shares"]]
    each = entry["images"] / len(shares)
    return 1.96 * math.sqrt(sum(share * (1 - share) / each for share in shares)) / len(shares)


def cells(cfg: ImageSampling, entry: dict[str, Any]) -> list[str]:
    low, high = cfg.guidance_interval
    return [
        name_of(cfg), f"{cfg.num_steps}", f"{cfg.guidance_scale:g}", f"{cfg.shift:g}", f"{low:g} to {high:g}",
        f"{cfg.guidance_rescale:g}", f"{num_evaluations(cfg)}", f"{entry['shares']['overall']:.3f} ± "
        f"{half_width(entry):.3f}", f"{entry['seconds'] / entry['images']:.3f}",
    ]  # fmt: skip


def frontier(rows: Iterable[tuple[ImageSampling, dict[str, Any]]]) -> list[tuple[int, float]]:
    """Evaluations and scores of the settings that no other beats with as few evaluations."""
    best: list[tuple[int, float]] = []
    for cfg, entry in sorted(rows, key=lambda row: (num_evaluations(row[0]), -row[1]["shares"]["overall"])):
        if not best or entry["shares"]["overall"] > best[-1][1]:
            best.append((num_evaluations(cfg), entry["shares"]["overall"]))
    return best


def plot(rows: list[tuple[ImageSampling, dict[str, Any]]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for index, name in enumerate(dict.fromkeys(name_of(cfg) for cfg, _ in rows)):
        own = [(cfg, entry) for cfg, entry in rows if name_of(cfg) == name]
        x, y = [num_evaluations(cfg) for cfg, _ in own], [entry["shares"]["overall"] for _, entry in own]
        if name == "paper":
            bars = [half_width(entry) for _, entry in own]
            axis.errorbar(x, y, bars, fmt="k*", markersize=10, capsize=3, label=name)
            continue
        axis.plot(x, y, ".", color=f"C{index}", alpha=0.4)
        axis.plot(*zip(*frontier(own), strict=True), color=f"C{index}", label=f"{name}, best settings")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set(xlabel="evaluations of the model an image", ylabel="GenEval on the small world, mean")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def write(rows: list[tuple[ImageSampling, dict[str, Any]]], options: argparse.Namespace) -> None:
    plot(rows, options.out / "image_sweep.png")
    command = " ".join(["python benchmarks/image_sweep.py", *sys.argv[1:]])
    images = rows[0][1]["images"]
    ordered = sorted(rows, key=lambda row: (num_evaluations(row[0]), -row[1]["shares"]["overall"]))
    table = [COLUMNS, ["---"] * len(COLUMNS), *(cells(cfg, entry) for cfg, entry in ordered)]
    text = f"""# Images: score against evaluations of the model

`{command}`, model {options.model}, commit {code_version()[:12]}, {time.strftime("%Y-%m-%d")}; {platform.machine()},
{os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} threads. World `{options.preset}`, split
{options.split}: {options.prompts} prompts a category, seeds {", ".join(map(str, options.seeds))}, {images} images a
row, all rows of the same prompts and noise. The score is the mean of GenEval's six categories by the world's detector,
with its 95 % interval; an evaluation is one image through the transformer, and a guided step has two. Seconds are
wall clock, with T5 and the autoencoder, and only meaningful on an idle machine.

![Score against evaluations](image_sweep.png)

"""
    lines = [f"| {' | '.join(line)} |" for line in table]
    (options.out / "image_sweep.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    given = parse()
    write(run(given), given)
