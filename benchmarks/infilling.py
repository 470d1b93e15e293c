"""In-filling: captions with words left out, which the model puts back in sight of the image.

    OMP_NUM_THREADS=1 python benchmarks/infilling.py [--model mini] [--scenes 300] [--split test]

Of each scene's complete caption, in a random wording, 1, 2, 3, 4 or all words are blanks, chosen at random; in the last
row all words of a caption that begins with "a photo of". A text is right if, filled in, it names every class, colour,
number and relation of the scene. The same texts are also filled in about the scene's background without its objects.
Captions with fewer words than blanks are left out. Prints the table of infilling.md; a few minutes on one core.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from PIL import Image
from tqdm import tqdm

from ddit.eval.intervals import wilson
from ddit.eval.world_tasks import empty_background
from ddit.pipeline import Pipeline
from ddit.world import PRESETS, Scene, caption_is_right, list_captions, make_caption, make_scene, render

ROWS: dict[str, tuple[int | None, str]] = {
    "1 word": (1, ""), "2 words": (2, ""), "3 words": (3, ""), "4 words": (4, ""),
    "all words": (None, ""), "all words of \"a photo of ...\"": (None, "a photo of"),
}  # fmt: skip
"""Number of blanks, None for every word, and what the caption begins with."""
BLANK = "___"


def caption_of(scene: Scene, opening: str, rng: random.Random) -> str:
    """A complete caption in a random wording, or in a random one with this opening."""
    if not opening:
        return make_caption(scene, rng)
    return rng.choice([caption for caption in list_captions(scene) if caption.startswith(opening)])


def blank_words(caption: str, num_blanks: int | None, rng: random.Random) -> str | None:
    """The caption with random words left out; None if it has fewer."""
    words = caption.split()
    count = len(words) if num_blanks is None else num_blanks
    if count > len(words):
        return None
    chosen = set(rng.sample(range(len(words)), count))
    return " ".join(BLANK if place in chosen else word for place, word in enumerate(words))


def share_right(
    pipeline: Pipeline, scenes: Sequence[Scene], images: Sequence[Image.Image], texts: Sequence[str]
) -> float:
    filled = pipeline.infill(list(images), list(texts), batch_size=32)
    right = [caption_is_right(scene, text, complete=True) for scene, text in zip(scenes, filled, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, wordings and blanks")
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained(args.model)
    scenes = [make_scene(PRESETS["fixed"], args.split, i, seed=args.seed) for i in range(args.scenes)]
    print("| blanks | n | right | 95 % interval | empty background |\n|---|---|---|---|---|")
    for name, (num_blanks, opening) in tqdm(ROWS.items(), unit="row"):
        rng = random.Random(f"infilling/{args.seed}/{args.split}/{name}")
        texts = [blank_words(caption_of(scene, opening, rng), num_blanks, rng) for scene in scenes]
        asked = [(scene, text) for scene, text in zip(scenes, texts, strict=True) if text is not None]
        shown, blanked = [scene for scene, _ in asked], [text for _, text in asked]
        right = share_right(pipeline, shown, [Image.fromarray(render(scene)) for scene in shown], blanked)
        blind = share_right(pipeline, shown, [empty_background(scene) for scene in shown], blanked)
        low, high = wilson(right, len(asked))
        print(f"| {name} | {len(asked)} | {right:.3f} | {low:.3f} to {high:.3f} | {blind:.3f} |", flush=True)


if __name__ == "__main__":
    main()
