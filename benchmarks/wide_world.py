"""A model on the wide world: `python benchmarks/wide_world.py MODEL`.

Reading: questions in seen and held-out wordings, about held-out pairs, in the benchmarks' own sentences, and about
single objects on white and black. Detailed descriptions: objects named, attributes right, statements false. Drawing:
prompts of GenEval's six categories and five more in seen and held-out wordings, judged by the wide world's detector.
Writes wide_world.md. `--truth` takes the truth for answers and images: the ceiling, and a check of the measure itself.
"""

import argparse
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddit.eval.report import code_version
from ddit.eval.wide_world import (
    READING_SETS,
    description_requests,
    measure_reading,
    score_descriptions,
    score_images,
    show,
    tally_tags,
)
from ddit.pipeline import Pipeline
from ddit.world import Prompt
from ddit.world.wide import WIDE_PRESETS, Part, make_prompts, make_scene
from ddit.world.wide.scenes import draw_ground
from ddit.world.wide.sprites import make_sprite

HERE = Path(__file__).parent
WIDE = WIDE_PRESETS["wide"]
PARTS: tuple[Part, ...] = ("seen", "held_out")


def draw_prompt(prompt: Prompt, rng: random.Random) -> Image.Image:
    """An image that shows what is asked for, composed of sprites."""
    colors = {clause.get("color") for clause in prompt.include}
    while (ground := make_scene(WIDE, "test", rng.randrange(1000)).ground).kind in colors:
        pass
    canvas = Image.fromarray(draw_ground(ground, 64))
    spots = [(2, 2), (34, 2), (2, 34), (34, 34)]
    rng.shuffle(spots)
    for clause in prompt.include:
        for _ in range(clause["count"]):
            left, top = spots.pop()
            if "position" in clause or (len(prompt.include) > 1 and "position" in prompt.include[-1]):
                relation = clause["position"][0] if "position" in clause else None
                away = {"left of": (34, 18), "right of": (2, 18), "above": (18, 34), "below": (18, 2)}
                near = {"left of": (2, 18), "right of": (34, 18), "above": (18, 2), "below": (18, 34)}
                left, top = near[relation] if relation else away[prompt.include[-1]["position"][0]]
            color = clause.get("color", rng.choice(("red", "green", "blue", "brown")))
            sprite = make_sprite(clause["class"], rng.choice(WIDE.styles), color, 26)
            canvas.paste(sprite, (left, top), sprite)
    return canvas


def draw_all(model: Pipeline | None, prompts: Sequence[Prompt], num_images: int) -> list[Image.Image]:
    if model is None:
        rng = random.Random(0)
        return [draw_prompt(p, rng) for p in prompts for _ in range(num_images)]
    images: list[Image.Image] = []
    texts = [p.text for p in prompts for _ in range(num_images)]
    for start in range(0, len(texts), 64):
        images += model.generate(texts[start : start + 64], seed=start, batch_size=64)
    return images


def report_reading(model: Pipeline | None, num: int) -> list[str]:
    lines = ["## Reading", "", "| set | right |", "|---|---|"]
    for chosen in READING_SETS:
        truth = iter([a.answer for a in chosen.items(num)])

        def answer(images: Sequence[Image.Image], asked: Sequence[str], truth=truth) -> Sequence[str]:
            if model is None:
                return list(itertools.islice(truth, len(images)))
            return model.answer(list(images), list(asked), batch_size=len(images))

        for figure in measure_reading(answer, num, sets=[chosen])[chosen.name]:
            if figure.name == "all" or chosen.name in ("seen wordings", "held-out wordings"):
                lines.append(
                    f"| {chosen.name}{'' if figure.name == 'all' else ': ' + figure.name} | {show(figure)} |"
                )
        print(lines[-1], flush=True)
    return lines


def report_descriptions(model: Pipeline | None, num: int) -> list[str]:
    lines = [
        "",
        "## Detailed descriptions",
        "",
        "| requests | scenes | objects | attributes | false |",
        "|---|---|---|---|---|",
    ]
    for part in PARTS:
        asked = description_requests(WIDE, num, part=part)
        texts = [a.answer for a in asked]
        if model is not None:
            texts = model.answer([a.image() for a in asked], [a.question for a in asked], batch_size=32)
        score = score_descriptions(asked, texts)
        shares = f"{score.objects:.4f} | {score.attributes:.4f} | {score.false:.4f}"
        lines.append(f"| {part.replace('_', '-')} wordings | {num} | {shares} |")
        print(lines[-1], flush=True)
    return lines


def report_drawing(model: Pipeline | None, num: int, num_images: int) -> list[str]:
    lines = ["", "## Drawing", "", "| category | seen wordings | held-out wordings |", "|---|---|---|"]
    figures = []
    for part in PARTS:
        prompts = make_prompts(WIDE, num, part=part)
        repeated = [p for p in prompts for _ in range(num_images)]
        scores = score_images(repeated, draw_all(model, prompts, num_images))
        figures.append(tally_tags(repeated, [s.correct for s in scores]))
    lines += [f"| {a.name} | {show(a)} | {show(b)} |" for a, b in zip(*figures, strict=True)]
    means = [np.mean([f.value for f in part[:6]]) for part in figures]
    lines.append(f"| mean of GenEval's six | {means[0]:.4f} | {means[1]:.4f} |")
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="folder of a model, or mini")
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--num", type=int, default=1000, help="questions of a set; descriptions")
    parser.add_argument("--num-prompts", type=int, default=125, help="prompts of a category")
    parser.add_argument("--num-images", type=int, default=4, help="images of a prompt")
    parser.add_argument("--out", type=Path, default=HERE / "wide_world.md")
    args = parser.parse_args()
    if args.truth == bool(args.model):
        parser.error("name a model, or give --truth")
    model = Pipeline.from_pretrained(args.model) if args.model else None
    options = f"--num {args.num} --num-prompts {args.num_prompts} --num-images {args.num_images}"
    name = args.model or "--truth"
    lines = [
        "# The wide world",
        "",
        f"`python benchmarks/wide_world.py {name} {options}`, {code_version()}.",
        "",
    ]
    parts: list[Callable[[], list[str]]] = [
        lambda: report_reading(model, args.num),
        lambda: report_descriptions(model, args.num),
        lambda: report_drawing(model, args.num_prompts, args.num_images),
    ]
    for part in parts:
        lines += part()
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
