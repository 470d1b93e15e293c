"""Generates the README's image: GenEval prompts of the small world's test split, four a kind, not selected.

python tools/generate_samples.py docs/images/samples.png
"""

import argparse
from pathlib import Path

from ddit.inference.image_grid import image_grid
from ddit.pipeline import Pipeline
from ddit.world import PRESETS, make_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--world", default="fixed", choices=list(PRESETS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = [prompt.text for prompt in make_prompts(PRESETS[options.world], 4, seed=options.seed)]
    images = Pipeline.from_pretrained(options.model).generate(texts, seed=options.seed)
    image_grid(images, texts, columns=8).save(options.out)


if __name__ == "__main__":
    main()
