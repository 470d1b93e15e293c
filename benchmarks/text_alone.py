"""What a share of text alone does for captions and answers, at equal image samples.

    OMP_NUM_THREADS=1 python benchmarks/text_alone.py --out runs/text_alone [--seeds 0 1 2]

A transformer of 5.9 M parameters with mini's autoencoder and text encoder learns from few images: 1,500 scenes,
16 drawn and 16 read a step. One arm also reads 16 texts of other scenes a step, with the null image: captions, a line
each. Both arms see as many images, in as many steps; lambda grows with the text rows, so that a row of an image weighs
the same. Finished runs are not run again. Prints the table of text_alone.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ddit
from ddit.config.data import SourceConfig, TextData, WorldData
from ddit.config.runs import DualRun, LatentsRun
from ddit.eval.captioning import cider
from ddit.pipeline import Pipeline
from ddit.recipes import build
from ddit.train.log import LOG_FILE, read_log
from ddit.train.stages import run_stages
from ddit.world import list_captions, make_caption, make_question, make_scene, render
from ddit.world.captions import caption_is_right

MINI = str(Path(ddit.__file__).parent / "assets" / "mini")
NUM_IMAGES, NUM_TEXTS, NUM_JUDGED = 1500, 60_000, 1000
ROWS = 16
ARMS = {"images alone": 0, "with text alone": ROWS}
"""Rows of text alone a step."""
HELD_OUT = {
    "caption_nelbo_token": "captions, bound a token",
    "question_nelbo_token": "answers, bound a token",
}


def make_latents(root: Path) -> LatentsRun:
    """The few training images, encoded by mini's autoencoder."""
    latents = build("mini-latents", root)
    assert isinstance(latents, LatentsRun)
    source = replace(latents.source, num_scenes=NUM_IMAGES)
    return replace(latents, source=source, vae=f"{MINI}/vae", teacher=None)


def write_texts(path: Path, world: WorldData) -> None:
    """Captions of scenes that are not among the images, a line each."""
    rng = random.Random(0)
    scenes = (make_scene(world.world, "train", NUM_IMAGES + i, seed=world.seed) for i in range(NUM_TEXTS))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(make_caption(scene, rng) + "\n" for scene in scenes))


def make_run(root: Path, arm: str, seed: int, num_steps: int) -> DualRun:
    """Both directions from fresh weights, the rate falling to 0 over the last 40 % of the steps."""
    stage1, latents = build("mini-stage1", root), make_latents(root)
    assert isinstance(stage1, DualRun)
    source, of_text = latents.source, ARMS[arm]
    assert isinstance(source, WorldData)
    cached = replace(source, latents=latents.out)
    read: tuple[SourceConfig, ...] = (replace(cached, question_fraction=0.5, weight=float(ROWS)),)
    if of_text:
        read += (TextData(str(root / "captions.txt"), weight=float(of_text)),)
    batch = 2 * ROWS + of_text
    return replace(
        stage1,
        out=str(root / f"{arm.replace(' ', '_')}-{seed}"),
        init=None,
        vae=f"{MINI}/vae",
        text=MINI,
        model=replace(stage1.model, hidden_size=192, depth=4, num_heads=3),
        data=replace(stage1.data, t2i=(cached,), i2t=read),
        objective=replace(
            stage1.objective, alignment_weight=0.0, i2t_fraction=1 - ROWS / batch,
            lambda_text=stage1.objective.lambda_text * (ROWS + of_text) / ROWS,
        ),
        optimizer=replace(stage1.optimizer, schedule="linear", decay_fraction=0.4),
        report=replace(
            stage1.report, evaluate_every=num_steps // 4, num_held_out=512, grid_every=num_steps + 1, num_grid=4,
            checkpoint_minutes=60.0, tensorboard=False,
        ),
        global_batch_size=batch,
        max_steps=num_steps,
        seed=seed,
    )  # fmt: skip


def judge(folder: Path, world: WorldData) -> dict[str, float]:
    """Captions and answers of held-out scenes: shares that are right, and CIDEr."""
    pipeline, rng = Pipeline.from_pretrained(folder), random.Random(1)
    scenes = [make_scene(world.world, "test", i) for i in range(NUM_JUDGED)]
    asked = [question for scene in scenes if (question := make_question(scene, rng)) is not None]
    captions, answers = [], []
    for first in range(0, NUM_JUDGED, 100):
        images = [render(scene) for scene in scenes[first : first + 100]]
        captions += pipeline.caption(images)
        answers += pipeline.answer(images, [question.text for question in asked[first : first + 100]])
    return {
        "captions right": statistics.mean(map(caption_is_right, scenes, captions)),
        "CIDEr": statistics.mean(cider(captions, [list_captions(scene) for scene in scenes])),
        "answers right": statistics.mean(a == q.answer for q, a in zip(asked, answers, strict=True)),
    }


def print_table(rows: dict[tuple[str, int], dict[str, float]]) -> None:
    """A row an arm: each figure's mean over the seeds, and the seeds' own."""
    names = list(next(iter(rows.values())))
    print(f"| arm | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for arm in dict.fromkeys(arm for arm, _ in rows):
        own = [figures for (other, _), figures in rows.items() if other == arm]
        cells = [
            f"{statistics.mean(f[name] for f in own):.3f} ({', '.join(f'{f[name]:.3f}' for f in own)})"
            for name in names
        ]
        print(f"| {arm} | {' | '.join(cells)} |")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/text_alone"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args(argv)
    latents = make_latents(args.out)
    assert isinstance(latents.source, WorldData)
    write_texts(args.out / "captions.txt", latents.source)
    run_stages([latents])
    rows = {}
    for seed in args.seeds:
        for arm in ARMS:
            run = make_run(args.out, arm, seed, args.steps)
            run_stages([run])
            events = list(read_log(Path(run.out) / LOG_FILE))
            figures = {
                label: next(e[key] for e in reversed(events) if key in e) for key, label in HELD_OUT.items()
            }
            rows[arm, seed] = figures | judge(Path(run.out) / "export", latents.source)
    print_table(rows)


if __name__ == "__main__":
    main()
