"""Views of an image, so that few images go further: as it is, mirrored, and from crops that are shifted a little.

They are numbered. View 0 is the image, and odd ones are mirrored where that is wanted, so that the view before a
mirrored one shows the same crop unmirrored.
"""

from __future__ import annotations

import random
import re

from PIL import Image, ImageOps

from ddit.data.samples import Sample
from ddit.images import fit_image

LARGEST_SCALE = 1.15
"""Of a shifted crop: the image is first resized so that up to an eighth of a side is cut off."""
_SIDES = re.compile(
    r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise|east|west"
    r"|links|rechts|(link|recht)(e|er|es|en|em)|linkerhand|rechterhand|uhrzeigersinn"
    r"|gauche|droite?|izquierd[ao]|derech[ao]|sinistr[ao]|destr[ao]|esquerd[ao]|direit[ao])s?\b"
    r"|左|右|лев|прав",
    re.IGNORECASE,
)


def is_mirrored_view(view: int) -> bool:
    """Whether a view is a mirrored one, where views are mirrored."""
    return view % 2 == 1


def names_a_side(sample: Sample) -> bool:
    """Whether the sample's texts tell left from right, as far as words show it: then a mirrored image belies them."""
    texts = [sample.caption, *(text for turn in sample.turns for text in turn)]
    return any(text and _SIDES.search(text) for text in texts)


def make_view(
    image: Image.Image, height: int, width: int, *, view: int, mirror: bool, seed: int
) -> Image.Image:
    """A view of an image, resized and cut to height x width.

    seed: of the image, for its shifted crops.
    """
    is_mirrored = mirror and is_mirrored_view(view)
    crop = view // 2 if mirror else view
    shown = fit_image(image, height, width) if crop == 0 else _shifted(image, height, width, seed, crop)
    return ImageOps.mirror(shown) if is_mirrored else shown


def _shifted(image: Image.Image, height: int, width: int, seed: int, crop: int) -> Image.Image:
    rng = random.Random(f"{seed}/{crop}")
    scale = rng.uniform(1.0, LARGEST_SCALE)
    tall, wide = max(height + 1, round(scale * height)), max(width + 1, round(scale * width))
    top, left = rng.randrange(tall - height + 1), rng.randrange(wide - width + 1)
    return fit_image(image, tall, wide).crop((left, top, left + width, top + height))
