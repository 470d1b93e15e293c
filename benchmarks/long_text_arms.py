"""What makes descriptions right in fewer passes: matched trainings of the packaged model, each with one thing changed.

    python -m benchmarks.long_text_arms [--seeds 0 1 2] [--steps 150] [--out runs/long_text_arms]

All arms go on from the same weights with the same detailed descriptions of scenes like the small world's, the same
optimizer and steps: without blocks, in blocks, in blocks with the entropy of right predictions in the loss
(`sharpen`), with wrong tokens among the visible ones (`wrong_share`; editing is on when they write), and with
embeddings in place of the text encoder's states. Rows of one arm differ in the rule that writes. Finished runs and
their figures are kept; `python -m benchmarks.long_text --plain OUT/plain-*/export --blocks OUT/blocks-*/export` plots
the first two against steps. Writes long_text_arms.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.long_text import HERE, Point, Setting, measure
from ddit.config.data import WideData
from ddit.config.runs import DualRun
from ddit.eval.report import code_version
from ddit.eval.wide_world import WORDINGS, Asking, WideSplit, make_requests
from ddit.pipeline import Pipeline
from ddit.recipes.wide import BLOCK_SIZE, wide_all
from ddit.train.stages import run_stages
from ddit.world.wide import WIDE_PRESETS

WORLD = "wide-easy"
DESCRIPTIONS = WideData(
    WIDE_PRESETS[WORLD], num_scenes=50_000, question_fraction=0.0, detailed_fraction=1.0, plain_descriptions=True,
    conversation_fraction=0.0, small_talk_fraction=0.0,
)  # fmt: skip
ROWS = 64


class Arm(NamedTuple):
    """What is changed: settings of the model and of the text's objective. edits: the samplers may edit tokens."""

    name: str
    model: Mapping[str, Any]
    text: Mapping[str, Any] = MappingProxyType({})
    edits: bool = False


BLOCKS = {"text_block_size": BLOCK_SIZE}
ARMS = (
    Arm("plain", {"text_block_size": 0}),
    Arm("blocks", BLOCKS),
    Arm("sharpened", BLOCKS, {"sharpen": 0.2}),
    Arm("wrong-tokens", BLOCKS, {"wrong_share": 0.1}, edits=True),
    Arm("embeddings", {**BLOCKS, "text_input": "embeddings"}),
)


def rules(arm: Arm, length: int) -> Iterator[Setting]:
    """By entropy, few passes to many; with editing where it was learnt."""
    limit = BLOCK_SIZE if arm.model["text_block_size"] else length
    for bound in (2.0, 1.0, 0.5, 0.2):
        options = {"num_steps": limit, "order": "entropy", "entropy_bound": bound, "temperature": 0.0}
        yield Setting("entropy", f"{bound:g} nats", options)
        if arm.edits:
            yield Setting("entropy, editing", f"{bound:g} nats", {**options, "edit_above": 0.9})


def make_run(arm: Arm, seed: int, args: argparse.Namespace) -> DualRun:
    run = wide_all(args.out)
    return replace(
        run,
        out=str(args.out / f"{arm.name}-{seed}"),
        init=args.init,
        model=replace(run.model, **arm.model),
        data=replace(run.data, t2i=(), i2t=(DESCRIPTIONS,), held_out=()),
        objective=replace(run.objective, i2t_fraction=1.0, text=replace(run.objective.text, **arm.text)),
        optimizer=replace(run.optimizer, lr=2.5e-4, muon_lr=0.005, warmup_steps=10),
        report=replace(
            run.report, tensorboard=False, grid_every=10 * args.steps, evaluate_every=10 * args.steps
        ),
        vae=args.init,
        text=args.init,
        global_batch_size=ROWS,
        max_steps=args.steps,
        seed=seed,
    )


def points_of(arm: Arm, seed: int, args: argparse.Namespace, asked: Sequence[Asking]) -> list[Point]:
    """What a finished run reaches under each rule: trained and measured unless it is there."""
    run = make_run(arm, seed, args)
    kept = Path(run.out) / f"points-{args.num}.json"
    if not kept.is_file():
        run_stages([run])
        pipeline = Pipeline.from_pretrained(Path(run.out) / "export")
        found = [
            measure(pipeline, setting, asked, seed, batch_size=32)
            for setting in rules(arm, pipeline.settings.text_length)
        ]
        kept.write_text(json.dumps(found))
    return [Point(*values) for values in json.loads(kept.read_text())]


def table(points: dict[str, list[Point]]) -> Iterator[str]:
    yield "| arm | rule | passes a text | attributes (each seed) | objects | false |"
    yield "|---|---|---|---|---|---|"
    for name, own in points.items():
        for rule, parameter in dict.fromkeys((point.rule, point.parameter) for point in own):
            some = [point for point in own if (point.rule, point.parameter) == (rule, parameter)]
            steps, objects, attributes, false = (
                statistics.mean(getattr(point, kind) for point in some)
                for kind in ("steps", "objects", "attributes", "false")
            )
            each = ", ".join(f"{point.attributes:.3f}" for point in some)
            yield (
                f"| {name} | {rule}, {parameter} | {steps:.1f} | {attributes:.3f} ({each}) | {objects:.3f} |"
                f" {false:.3f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", default="mini", help="what all arms start from [default: %(default)s]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150, help="of 64 descriptions [default: %(default)s]")
    parser.add_argument(
        "--arms", nargs="+", default=[arm.name for arm in ARMS], help="by name [default: all]"
    )
    parser.add_argument("--num", type=int, default=128, help="scenes to describe [default: %(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/long_text_arms"))
    parser.add_argument("--report", type=Path, default=HERE / "long_text_arms.md")
    args = parser.parse_args()
    asked = list(make_requests(WideSplit(WIDE_PRESETS[WORLD], num=args.num), WORDINGS[0]))
    points: dict[str, list[Point]] = {}
    for seed in args.seeds:
        for arm in (arm for arm in ARMS if arm.name in args.arms):
            found = points_of(arm, seed, args, asked)
            points.setdefault(arm.name, []).extend(found)
            print(*found, sep="\n", flush=True)
    heading = f"""# Descriptions in fewer passes, by what was trained

`python -m benchmarks.long_text_arms --init {args.init} --steps {args.steps} --num {args.num}`,
{code_version()}. {args.num} scenes of `{WORLD}`'s test split; means over {len(args.seeds)} training seeds, and each.
"""
    args.report.write_text("\n".join([heading, *table(points)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
