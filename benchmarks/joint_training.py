"""What reading does to drawing, and the reverse: matched arms on the wide world.

    OMP_NUM_THREADS=1 python -m benchmarks.joint_training --out runs/joint_training [--seeds 0 1 2] [--steps 2000]

Every arm draws as many images, 64 a step for twice --steps: the first half makes the image-only model, for the arms
that start from one. Arms that read see 64 texts a step beside them, with weight lambda on their loss. No arm has
representation alignment. A transformer of 5.9 M parameters, with `mini`'s autoencoder and text encoder and one pool of
scenes for all. The rate falls over the same last steps in all. Finished runs and their figures are kept. Prints the
table of joint_training.md: means over the seeds, and the seeds' own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from ddit.config.data import WideData
from ddit.config.runs import DualRun, RunConfig
from ddit.eval.geneval import score_images, tally_categories
from ddit.eval.wide_world import WORDINGS, WideSplit, is_right, make_questions
from ddit.pipeline import Pipeline
from ddit.recipes.small import small
from ddit.train.log import LOG_FILE, read_log
from ddit.train.stages import run_stages
from ddit.world.wide import WIDE_PRESETS, make_prompts
from ddit.world.wide.checked import detect_checked

ROWS = 64
SCENES = WideData(
    num_scenes=60_000, question_fraction=0.7, detailed_fraction=0.0, conversation_fraction=0.0,
    small_talk_fraction=0.0, detailed_prompt_fraction=0.0,
)  # fmt: skip
TEST = WideSplit(WIDE_PRESETS["wide"], num=1000, num_prompts=40)
HELD_OUT = {"flow_loss": "flow loss", "question_nelbo_token": "answers, bound a token"}


class Arm(NamedTuple):
    """start: of the second half. reads: 64 texts a step beside the images."""

    start: Literal["image", "nothing"]
    reads: bool
    weight: float = 2.0

    def __str__(self) -> str:
        what = f"draws and reads, lambda {self.weight:g}" if self.reads else "draws alone"
        return f"{what}, from {'an image-only model' if self.start == 'image' else 'nothing'}"

    @property
    def name(self) -> str:
        return f"{self.start}-{self.weight:g}" if self.reads else f"{self.start}-draws"


ARMS = (
    Arm("image", False), Arm("image", True), Arm("nothing", False), Arm("nothing", True),
    Arm("image", True, 0.2), Arm("image", True, 1.0), Arm("image", True, 5.0),
)  # fmt: skip


def plan(root: Path, num_steps: int) -> tuple[list[RunConfig], DualRun, DualRun]:
    """What all arms have in common, and what they are made of: an image-only run and a joint one."""
    val = replace(SCENES, split="val", num_scenes=2000)
    *before, image, joint, _ = small(
        root, [SCENES], "xs", 1.0, held_out=[val], image_size=64, text_length=32, vae="mini", text="mini"
    )
    assert isinstance(image, DualRun)
    assert isinstance(joint, DualRun)
    return before, fitted(image, num_steps), fitted(joint, num_steps)


def fitted(run: DualRun, num_steps: int) -> DualRun:
    """The rate falls to 0 over the last 40 % of these steps; figures at the end."""
    report = replace(
        run.report, evaluate_every=num_steps, num_held_out=512, grid_every=10 * num_steps, tensorboard=False,
        checkpoint_minutes=5.0,
    )  # fmt: skip
    optimizer = replace(run.optimizer, schedule="linear", decay_fraction=0.4, warmup_steps=60)
    return replace(run, optimizer=optimizer, report=report, max_steps=num_steps)


def make_runs(arm: Arm, seed: int, root: Path, image: DualRun, joint: DualRun) -> Iterator[DualRun]:
    """The runs of an arm, in their order; the image-only half is the same run for all arms of a seed."""
    kept = replace(image.optimizer, schedule="constant")  # what is trained further has not let its rate fall
    first = replace(
        image, out=str(root / f"image-{seed}"), optimizer=kept, global_batch_size=ROWS, seed=10 * seed
    )
    rows = 2 * ROWS if arm.reads else ROWS
    objective = replace(joint.objective, i2t_fraction=0.5 if arm.reads else 0.0, lambda_text=arm.weight)
    second = replace(
        joint, out=str(root / f"{arm.name}-{seed}"), objective=objective, global_batch_size=rows, seed=10 * seed + 1
    )  # fmt: skip
    if arm.start == "image":
        yield first
        yield replace(second, init=f"{first.out}/export")
    else:
        falling = replace(image.optimizer, decay_fraction=image.optimizer.decay_fraction / 2)
        yield replace(second, init=None, max_steps=2 * image.max_steps, optimizer=falling)


def judge(folder: Path, *, reads: bool) -> dict[str, float]:
    """Shares of prompts drawn rightly, over the categories, and of questions that are answered rightly."""
    pipeline = Pipeline.from_pretrained(folder)
    prompts = make_prompts(TEST.config, TEST.num_prompts, split=TEST.split)
    images = pipeline.generate([prompt.text for prompt in prompts], seed=0, batch_size=64)
    scores = score_images(prompts, images, detect_checked)
    overall = tally_categories([p.tag for p in prompts], [score.correct for score in scores])[0]
    found = {"drawn rightly": overall.value}
    if reads:
        asked = list(islice(make_questions(TEST, WORDINGS[0]), TEST.num))
        answers = pipeline.answer(
            [one.image() for one in asked], [one.question for one in asked], batch_size=64
        )
        right = [is_right(one.answer, text) for one, text in zip(asked, answers, strict=True)]
        found["answered rightly"] = statistics.mean(right)
    return found


def figures(arm: Arm, run: DualRun) -> dict[str, float]:
    events = list(read_log(Path(run.out) / LOG_FILE))
    logged = {
        label: next(event[key] for event in reversed(events) if key in event)
        for key, label in HELD_OUT.items()
        if any(key in event for event in events)
    }
    return logged | judge(Path(run.out) / "export", reads=arm.reads)


def kept_figures(arm: Arm, runs: Sequence[DualRun]) -> dict[str, float]:
    """The figures of an arm's last run: trained and measured unless they are there."""
    kept = Path(runs[-1].out) / "figures.json"
    if not kept.is_file():
        run_stages(runs)
        kept.write_text(json.dumps(figures(arm, runs[-1])))
    return json.loads(kept.read_text())


def print_table(rows: dict[Arm, list[dict[str, float]]]) -> None:
    names = list(dict.fromkeys(name for own in rows.values() for found in own for name in found))
    print(f"| arm | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for arm, own in rows.items():
        cells = []
        for name in names:
            values = [found[name] for found in own if name in found]
            each = ", ".join(f"{value:.3f}" for value in values)
            cells.append(f"{statistics.mean(values):.3f} ({each})" if values else "")
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/joint_training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000, help="of each half [default: %(default)s]")
    parser.add_argument(
        "--arms", nargs="+", default=[arm.name for arm in ARMS], help="by name [default: all]"
    )
    args = parser.parse_args(argv)
    before, image, joint = plan(args.out, args.steps)
    run_stages(before)
    rows: dict[Arm, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for arm in (arm for arm in ARMS if arm.name in args.arms):
            runs = list(make_runs(arm, seed, args.out, image, joint))
            rows.setdefault(arm, []).append(kept_figures(arm, runs))
            print(f"{arm}, seed {seed}: {rows[arm][-1]}", flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
