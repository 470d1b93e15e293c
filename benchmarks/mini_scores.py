"""Scores of a small-world checkpoint on scenes and prompts of unseen seeds; writes the table to standard output.

    python benchmarks/mini_scores.py [--model mini] [--num 50] [--split test]

Pictures are judged by the world's detector under GenEval's rules, captions and answers against the scenes' truth.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice

import numpy as np
from PIL import Image

from ddit.pipeline import Pipeline
from ddit.world import (
    PRESETS,
    QUESTION_KINDS,
    TAGS,
    Question,
    Scene,
    WorldConfig,
    caption_is_right,
    detect,
    geneval_prompts,
    judge,
    make_scene,
    question,
    render,
)


def scenes(
    world: WorldConfig, split: str, wanted: Callable[[Scene], bool] = lambda scene: True
) -> Iterator[Scene]:
    """Scenes of a split in the order of their index, without end."""
    return filter(wanted, (make_scene(world, split, index) for index in count()))


def pictures_of(some: list[Scene]) -> list[Image.Image]:
    return [Image.fromarray(render(scene)) for scene in some]


def score_pictures(
    pipeline: Pipeline, world: WorldConfig, split: str, num: int, settings: dict
) -> dict[str, tuple[int, int]]:
    """Right pictures and pictures, by GenEval tag: `num` prompts of each, two pictures a prompt."""
    prompts = [prompt for prompt in geneval_prompts(world, num, split=split) for _ in range(2)]
    images = pipeline.generate([prompt.text for prompt in prompts], batch_size=32, **settings)
    found = detect(np.stack([np.asarray(image) for image in images]))
    scores = {}
    for tag in TAGS:
        right = [
            judge(prompt, seen) for prompt, seen in zip(prompts, found, strict=True) if prompt.tag == tag
        ]
        if right:
            scores[tag] = sum(right), len(right)
    return scores


def ask(world: WorldConfig, split: str, kind: str, num: int) -> list[tuple[Scene, Question]]:
    """`num` questions of one kind, each about another scene."""
    asked: list[tuple[Scene, Question]] = []
    for scene in scenes(world, split):
        one = question(scene, random.Random(f"{kind}/{scene.index}"), kind)
        if one is not None:
            asked.append((scene, one))
        if len(asked) == num:
            break
    return asked


def score_answers(
    pipeline: Pipeline, world: WorldConfig, split: str, num: int, num_steps: int | None
) -> Iterator[tuple[str, int, int, str, int]]:
    """Of each kind: its name, right answers, answers, and the commonest answer and how often it is right."""
    for kind in QUESTION_KINDS:
        asked = ask(world, split, kind, num)
        images = pictures_of([scene for scene, _ in asked])
        answers = pipeline.answer(images, [q.text for _, q in asked], batch_size=64, num_steps=num_steps)
        right = sum(answer == q.answer for answer, (_, q) in zip(answers, asked, strict=True))
        (commonest, times), *_ = Counter(q.answer for _, q in asked).most_common(1)
        yield kind, right, len(asked), commonest, times


def score_captions(
    pipeline: Pipeline, world: WorldConfig, split: str, num: int, num_steps: int | None
) -> Iterator[tuple[str, int, int]]:
    """Captions that are right in every attribute and leave none out, by kind of scene."""
    for kind in world.kind_weights():
        some = list(islice(scenes(world, split, lambda scene, kind=kind: scene.kind == kind), num))
        written = pipeline.caption(pictures_of(some), batch_size=64, num_steps=num_steps)
        right = sum(
            caption_is_right(scene, text, complete=True) for scene, text in zip(some, written, strict=True)
        )
        yield kind, right, num


def show(name: str, right: int, num: int, note: str = "") -> None:
    share = right / num
    spread = 1.96 * (share * (1 - share) / num) ** 0.5
    print(f"| {name} | {share:.3f} ± {spread:.3f} | {num} | {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", help="mini, or a model's folder")
    parser.add_argument("--world", default="fixed", choices=PRESETS)
    parser.add_argument("--split", default="test", choices=("val", "test", "heldout"))
    parser.add_argument(
        "--num", type=int, default=50, help="prompts a category; four times as many texts of a kind"
    )
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--num-steps", type=int, help="of drawing")
    parser.add_argument("--text-steps", type=int)
    parser.add_argument("--dtype", help="of the model, by default float32 on a CPU")
    parser.add_argument("--only", choices=("pictures", "answers", "captions"))
    args = parser.parse_args()
    pipeline, world = Pipeline.from_pretrained(args.model, dtype=args.dtype), PRESETS[args.world]
    start = time.monotonic()
    print(
        f"`python benchmarks/mini_scores.py {' '.join(sys.argv[1:])}`: world {args.world}, split {args.split}\n"
    )
    print("| task | right (95 % interval) | number | note |\n|---|---|---|---|")
    if args.only in (None, "pictures"):
        settings = {"guidance_scale": args.guidance_scale, "num_steps": args.num_steps}
        scores = score_pictures(pipeline, world, args.split, args.num, settings)
        for tag, (right, num) in scores.items():
            show(f"draw: {tag}", right, num)
        overall = sum(right / num for right, num in scores.values()) / len(scores)
        print(f"| draw: mean of the categories | {overall:.3f} | | |")
    if args.only in (None, "answers"):
        for kind, right, num, commonest, times in score_answers(
            pipeline, world, args.split, 4 * args.num, args.text_steps
        ):
            show(f"answer: {kind}", right, num, f"always '{commonest}': {times / num:.3f}")
    if args.only in (None, "captions"):
        for kind, right, num in score_captions(pipeline, world, args.split, 4 * args.num, args.text_steps):
            show(f"caption: {kind}", right, num, "every attribute")
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
