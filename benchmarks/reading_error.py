"""What keeping the image side or the text encoder's states over passes does to a model's predictions.

    OMP_NUM_THREADS=1 python benchmarks/reading_error.py [--model DIR]

Prints a table of reading_error.md, in two minutes on one core. `mini`'s image side is exact however long it is kept.
"""

from __future__ import annotations

import argparse
import random

from PIL import Image

from ddit.inference.text_generator import WritingOptions
from ddit.pipeline import Pipeline
from ddit.world import PRESETS, make_scene, make_question, render

NUM_SCENES = 32
KEPT: tuple[WritingOptions, ...] = (
    {"image_refresh": 2}, {"image_refresh": 4}, {"image_refresh": 0},
    {"text_refresh": 2}, {"text_refresh": 4}, {"text_refresh": 0},
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mini")
    pipeline = Pipeline.from_pretrained(parser.parse_args().model, device="cpu")
    scenes = [make_scene(PRESETS["fixed"], "test", index) for index in range(NUM_SCENES)]
    images = [Image.fromarray(render(scene)) for scene in scenes]
    asked = [make_question(scene, random.Random(index)) for index, scene in enumerate(scenes)]
    questions = [item.text for item in asked if item is not None]
    assert len(questions) == NUM_SCENES
    print(
        "| texts | kept | positions | mean KL, nats | same likeliest token | same text |\n"
        + "|---|---|---|---|---|---|"
    )
    for texts in ("captions", "answers"):

        def written(options: WritingOptions, texts: str = texts) -> list[str]:
            if texts == "captions":
                return pipeline.caption(images, batch_size=NUM_SCENES, **options)
            return pipeline.answer(images, questions, batch_size=NUM_SCENES, **options)

        exact = written({})
        for kept in KEPT:
            about = None if texts == "captions" else questions
            error = pipeline.reading_error(images, about, batch_size=NUM_SCENES, **kept)
            same = sum(a == b for a, b in zip(exact, written(kept), strict=True)) / NUM_SCENES
            ((name, every),) = kept.items()
            print(
                f"| {texts} | `{name}={every}` | {error.num_positions} | {error.kl:.4f} | {error.agreement:.3f} |"
                f" {same:.2f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
