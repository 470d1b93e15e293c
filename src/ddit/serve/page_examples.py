"""The page's examples: scenes of the small world for a model that knows it, plain prompts for others."""

import random
import re
from dataclasses import dataclass

from PIL import Image

from ddit.model.encoders import TextCodec
from ddit.world import (
    CLASSES,
    COLORS,
    PRESETS,
    QUESTION_KINDS,
    Scene,
    list_vocabulary,
    make_caption,
    make_question,
    make_scene,
    render,
)
from ddit.world.captions import find_relation, phrase

LARGEST_SMALL_VOCABULARY = 1500


@dataclass(frozen=True)
class Examples:
    """Texts to try. has_world: the model was trained on the small world, so that its scenes are offered, too."""

    prompts: tuple[str, ...]
    questions: tuple[str, ...]
    blanks: tuple[str, ...]
    changes: tuple[str, ...]
    has_world: bool


SMALL_WORLD = Examples(
    prompts=(
        "a photo of a red car",
        "a purple horse above a cake",
        "two green apples",
        "a blue umbrella left of a brown dog",
        "a photo of a pink donut",
    ),
    questions=("what is in the picture?", "is there a dog?", "is there a cup?"),
    blanks=("a photo of a ___ ___", "there is a ___ ___", "a ___ ___ and a ___ ___"),
    changes=("a photo of a green car", "a photo of a dog", "a photo of a pink umbrella"),
    has_world=True,
)

ANY = Examples(
    prompts=(
        "a corgi in the snow",
        "a red bicycle leaning on a brick wall",
        "a bowl of oranges on a wooden table, morning light",
    ),
    questions=("What is in the image?", "How many people are there?", "What color is the background?"),
    blanks=("a photo of a ___", "a ___ ___ on a ___"),
    changes=("a cat in the snow", "a blue bicycle leaning on a brick wall"),
    has_world=False,
)


@dataclass(frozen=True)
class SceneSample:
    """A scene of the small world with its caption and answers, a text with blanks, and captions of changed scenes."""

    number: int
    image: Image.Image
    caption: str
    questions: tuple[tuple[str, str], ...]
    blank: str
    changes: tuple[str, ...]


def examples_for(codec: TextCodec) -> Examples:
    """Those of the small world for a tokenizer that holds its words and little else."""
    knows = codec.vocab_size <= LARGEST_SMALL_VOCABULARY and not codec.unknown_words(
        " ".join(list_vocabulary())
    )
    return SMALL_WORLD if knows else ANY


def scene_sample(number: int) -> SceneSample:
    """Scene `number` of the split `test`, which no model was trained on; always the same for a number."""
    scene = make_scene(PRESETS["fixed"], "test", number)
    rng = random.Random(number)
    caption = make_caption(scene, rng)
    questions = [found for kind in QUESTION_KINDS if (found := make_question(scene, rng, kind)) is not None]
    return SceneSample(
        number=number,
        image=Image.fromarray(render(scene)),
        caption=caption,
        questions=tuple((found.text, found.answer) for found in questions),
        blank=with_blanks(caption),
        changes=tuple(
            _with_last_group(scene, *other) for other in (("car", "red"), ("apple", "green"), ("cup", "blue"))
        ),
    )


def with_blanks(caption: str) -> str:
    """A caption of the small world with blanks for its colours or, if it has none, for its things."""
    blanked = re.sub(rf"\b({'|'.join(COLORS)})\b", "___", caption)
    return blanked if blanked != caption else re.sub(rf"\b({'|'.join(CLASSES)})(s|es)?\b", "___", caption)


def _with_last_group(scene: Scene, class_name: str, color: str) -> str:
    """A caption of the scene with another thing as its last."""
    *others, last = scene.groups
    parts = [phrase(group.class_name, group.color, group.count) for group in others]
    changed = phrase(class_name, color, last.count)
    return f" {find_relation(scene) or 'and'} ".join([*parts, changed])
