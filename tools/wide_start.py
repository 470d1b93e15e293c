"""`python tools/wide_start.py [ROOT]`: where `wide-joint` begins, in ROOT/wide-start.

It is the last model of `ddit train mini` in ROOT with the text encoder ROOT/wide-text, which is fitted to the old one
by texts of the small world, which both know.
"""

import random
import sys
from pathlib import Path

import torch

from ddit.model.growing import with_text_encoder
from ddit.model.loading import load_parts, load_text_codec
from ddit.model.saving import save_parts
from ddit.prompts import MINI
from ddit.world import PRESETS, make_caption, make_question, make_scene

NUM_TEXTS, LENGTH = 6000, 32


def small_world_texts(num: int) -> list[str]:
    """Prompts and questions, as the model is shown them."""
    texts = []
    for index in range(num):
        scene, rng = make_scene(PRESETS["fixed"], "train", index), random.Random(index)
        asked = make_question(scene, rng)
        if asked is None or rng.random() < 0.5:
            texts.append(MINI.given(make_caption(scene, rng, complete=False)))
        else:
            texts.append(MINI.question_template.replace("{question}", MINI.given(asked.text)).rstrip())
    return texts


def main(root: Path) -> None:
    codec = load_text_codec(root / "wide-text/export", dtype=torch.float32, device=torch.device("cpu"))
    start = with_text_encoder(
        load_parts(root / "mini-isolated/export", dtype=torch.float32),
        codec,
        small_world_texts(NUM_TEXTS),
        LENGTH,
    )
    save_parts(
        root / "wide-start", transformer=start.transformer, image_codec=start.image_codec,
        text_codec=start.text_codec, settings=start.settings,
    )  # fmt: skip
    print(root / "wide-start")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
