"""Audits of what the results page says: how new the test is, other wordings, the official script, fresh seeds.

    OMP_NUM_THREADS=1 python benchmarks/claims.py [twins] [pope] [vqav2-script] [seeds] [diversity] [--vqa-repo DIR]

twins: how many test scenes have a training scene with the same objects at the same places, whatever the background.
pope: POPE with the world's wording, which training has, and with POPE's own sentence.
vqav2-script: the answers of `ddit eval vqav2`, scored by the official script; needs a checkout of
    github.com/GT-Vision-Lab/VQA.
seeds: answers and captions over three fresh world seeds, held-out pairs against the others.
diversity: colours of single objects whose prompt names none, and how far drawings of one prompt differ.

By default all but vqav2-script. Prints the tables of claims.md; a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddit.config.data import WorldData
from ddit.config.runs import DualRun
from ddit.eval.evaluate import EvalData, evaluate
from ddit.eval.intervals import wilson
from ddit.eval.options import EvalOptions
from ddit.eval.report import Summary
from ddit.eval.world_tasks import WorldSplit, write_eval_data
from ddit.files import read_json
from ddit.pipeline import Pipeline
from ddit.recipes import plan_runs
from ddit.world import PRESETS, Scene, WorldConfig, make_scene
from ddit.world.wide.checked import detect_checked

WORLD = PRESETS["fixed"]
TWIN_SCENES = 3000
DRAWN_CLASSES, NUM_DRAWINGS, DRAWING_SEED = (
    ("car", "cat", "apple", "bird", "cup", "bus", "clock", "chair"), 16, 3000,
)  # fmt: skip
SEED_TASKS = ("vqav2", "vizwiz", "gqa", "caption")
FRESH_SEEDS = (101, 102, 103)
FRESH_SCENES = 500
OWN_POPE = re.compile(r"is there (.+)\?")


def share(right: float, num: int) -> str:
    low, high = wilson(right / num, num)
    return f"{right / num:.4f} | {low:.4f} to {high:.4f} | {num:,}"


def run(pipeline: Pipeline, tasks: Iterable[str], data: EvalData, out: Path) -> dict[str, Summary]:
    return {s.task: s for s in evaluate(pipeline, list(tasks), data, out, options=EvalOptions())}


def foreground(scene: Scene) -> int:
    """A hash of the objects, without the background."""
    return hash(tuple(sorted(scene.objects, key=lambda item: (item.left, item.top))))


def twins(model: str) -> None:
    """In the training scenes of the recipe `mini`, whatever the model."""
    del model
    pools = training_pools()
    total = sum(count for _, count, _ in pools)
    seen = {
        foreground(make_scene(world, "train", index, seed=seed))
        for world, count, seed in pools
        for index in range(count)
    }
    print(f"{total:,} training scenes with {len(seen):,} different foregrounds\n")
    print("| test scenes | with a twin in training | 95 % interval | n |\n|---|---|---|---|")
    for split in ("test", "heldout"):
        scenes = [make_scene(WORLD, split, index) for index in range(TWIN_SCENES)]
        for kind in ("single", "two", "count", "mixed"):
            known = [foreground(scene) in seen for scene in scenes if scene.kind == kind]
            print(f"| {split}, {kind} | {share(sum(known), len(known))} |", flush=True)


def training_pools() -> list[tuple[WorldConfig, int, int]]:
    """World, number of scenes and seed of each source that the recipe's transformer is trained on."""
    data = [config.data for config in plan_runs("mini", "runs") if isinstance(config, DualRun)]
    sources = [source for each in data for source in (*each.t2i, *each.i2t) if isinstance(source, WorldData)]
    return list(dict.fromkeys((source.world, source.num_scenes, source.seed) for source in sources))


def pope(model: str) -> None:
    pipeline = Pipeline.from_pretrained(model)
    print(
        "| wording | F1 | 95 % interval | n | accuracy | recall | share of yes |\n|---|---|---|---|---|---|---|"
    )
    wordings: dict[str, Callable[[str], str]] = {
        "is there a dog?": lambda text: text,
        "Is there a dog?": lambda text: text[0].upper() + text[1:],
        "is there a dog in the image?": lambda text: OWN_POPE.sub(r"is there \1 in the image?", text),
        "Is there a dog in the picture?": lambda text: OWN_POPE.sub(r"Is there \1 in the picture?", text),
        "Is there a dog in the image?": lambda text: OWN_POPE.sub(r"Is there \1 in the image?", text),
    }
    with TemporaryDirectory() as name:
        world = WorldSplit(WORLD)
        write_eval_data(Path(name) / "data", world, ["pope"])
        files = sorted((Path(name) / "data/pope").glob("*.json"))
        originals = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
        for wording, change in wordings.items():
            for path, lines in zip(files, originals, strict=True):
                path.write_text(
                    "".join(json.dumps({**line, "text": change(line["text"])}) + "\n" for line in lines)
                )
            data = EvalData(Path(name) / "data", world)
            found = {f.name: f for f in run(pipeline, ["pope"], data, Path(name) / "out")["pope"].figures}
            low, high = found["F1"].interval or (0, 1)
            cells = [f"{found['F1'].value:.3f}", f"{low:.3f} to {high:.3f}", f"{found['F1'].num:,}"]
            cells += [f"{found[key].value:.3f}" for key in ("accuracy", "recall", "share of yes")]
            print(f"| {wording} | {' | '.join(cells)} |", flush=True)


def vqav2_script(model: str, repo: Path) -> None:
    """The script is written for Python 2: its indentation and `print` are adapted, its rules are as they stand."""
    source = (repo / "PythonEvaluationTools/vqaEvaluation/vqaEval.py").read_text().expandtabs(8)
    source = re.sub(r"^(\s*)print (.+)$", r"\1print(\2)", source, flags=re.MULTILINE)
    script: dict[str, Any] = {"__name__": "vqaEval"}
    exec(compile(source, "vqaEval.py", "exec"), script)
    with TemporaryDirectory() as name:
        folder, world = Path(name), WorldSplit(WORLD)
        write_eval_data(folder / "data", world, ["vqav2"])
        run(Pipeline.from_pretrained(model), ["vqav2"], EvalData(folder / "data", world), folder / "out")
        answers = [
            json.loads(line) for line in (folder / "out/vqav2/predictions.jsonl").read_text().splitlines()
        ]
        annotations = read_json(folder / "data/vqav2/annotations.json")["annotations"]
    truth = {entry["question_id"]: entry for entry in annotations}
    given = {int(line["id"]): {"answer": line["prediction"]} for line in answers}
    official = script["VQAEval"](
        SimpleNamespace(qa=truth, getQuesIds=lambda: list(truth)), SimpleNamespace(qa=given)
    )
    official.updateProgress = lambda progress: None
    official.evaluate()
    print(f"official script: {official.accuracy} of {len(truth):,} questions")
    ours = sum(line["score"] for line in answers) / len(answers)
    print(f"ddit eval: {100 * ours:.2f}")


def seeds(model: str) -> None:
    pipeline = Pipeline.from_pretrained(model)
    right = {(task, split): (0.0, 0) for task in SEED_TASKS for split in ("test", "heldout")}
    for seed in FRESH_SEEDS:
        for split in ("test", "heldout"):
            world = WorldSplit(WORLD, split, num=FRESH_SCENES, seed=seed)
            with TemporaryDirectory() as name:
                found = run(pipeline, SEED_TASKS, EvalData(None, world), Path(name))
            for task, summary in found.items():
                figure, (sum_right, num) = summary.figures[0], right[task, split]
                right[task, split] = (sum_right + figure.value * figure.num, num + figure.num)
                print(f"{task}, {split}, seed {seed}: {figure.value:.4f} of {figure.num:,}", flush=True)
    print(
        "\n| task | test | 95 % interval | n | held out | 95 % interval | n | z |\n|---|---|---|---|---|---|---|---|"
    )
    for task in SEED_TASKS:
        (a, n), (b, m) = right[task, "test"], right[task, "heldout"]
        pooled = (a + b) / (n + m)
        error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        z = (a / n - b / m) / error if error else 0.0
        print(f"| {task} | {share(a, n)} | {share(b, m)} | {z:.1f} |")


def diversity(model: str) -> None:
    pipeline = Pipeline.from_pretrained(model)
    bits, spreads = [], []
    for number, name in enumerate(DRAWN_CLASSES):
        images = pipeline.generate([f"a photo of a {name}"] * NUM_DRAWINGS, seed=DRAWING_SEED + 100 * number)
        pixels = np.stack([np.asarray(image) for image in images])
        seen = Counter(d.color for found in detect_checked(pixels) for d in found if d.class_name == name)
        bits.append(sum(-n / seen.total() * math.log2(n / seen.total()) for n in seen.values()))
        spreads.append(pixels.std(0).mean())
        print(f"{name}: {dict(seen)}, spread {spreads[-1]:.1f} of 255", flush=True)
    print(f"\nmean of {len(bits)} prompts, {NUM_DRAWINGS} drawings each: ", end="")
    print(f"{np.mean(bits):.2f} bits of colour, spread {np.mean(spreads):.1f} of 255")


def main() -> None:
    audits = {"twins": twins, "pope": pope, "seeds": seeds, "diversity": diversity}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audits", nargs="*", metavar="AUDIT", help=f"{', '.join(audits)}, vqav2-script")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--vqa-repo", type=Path, help="a checkout of github.com/GT-Vision-Lab/VQA")
    args = parser.parse_args()
    for name in args.audits or audits:
        print(f"\n## {name}\n")
        if name == "vqav2-script":
            if args.vqa_repo is None:
                parser.error("vqav2-script needs --vqa-repo")
            vqav2_script(args.model, args.vqa_repo)
        else:
            audits[name](args.model)


if __name__ == "__main__":
    main()
