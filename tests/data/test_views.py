"""Views of images: which are mirrored, which texts forbid it, and that crops stay within a little."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from ddit.data.samples import Sample, Turn
from ddit.data.views import is_mirrored_view, make_view, names_a_side


def image(width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).resize((80, 60))


def test_odd_views_are_the_mirrored_ones_before_them() -> None:
    for view in range(0, 6, 2):
        plain = make_view(image(), 32, 32, view=view, mirror=True, seed=3)
        mirrored = make_view(image(), 32, 32, view=view + 1, mirror=True, seed=3)
        assert ImageOps.mirror(plain).tobytes() == mirrored.tobytes()
        assert not is_mirrored_view(view)
        assert is_mirrored_view(view + 1)


@pytest.mark.parametrize("mirror", [True, False])
def test_views_differ_and_are_drawn_by_the_seed(mirror: bool) -> None:
    made = [make_view(image(), 32, 48, view=view, mirror=mirror, seed=1).tobytes() for view in range(6)]
    assert len(set(made)) == 6
    again = [make_view(image(), 32, 48, view=view, mirror=mirror, seed=1).tobytes() for view in range(6)]
    assert made == again
    assert made[3] != make_view(image(), 32, 48, view=3, mirror=mirror, seed=2).tobytes()


@pytest.mark.parametrize("size", [(20, 20), (2000, 250), (8, 64)])
def test_any_size_gives_the_shape(size: tuple[int, int]) -> None:
    for view in range(4):
        assert make_view(Image.new("RGB", size), 32, 48, view=view, mirror=True, seed=0).size == (48, 32)


@pytest.mark.parametrize(
    ("text", "is_side"),
    [
        ("a dog left of a cat", True),
        ("The Right shoe", True),
        ("Was ist links?", True),
        ("der linke Hund", True),
        ("à gauche", True),
        ("左の犬", True),
        ("a bright leftover", False),
        ("rechteckig und grün 🎨", False),
        ("what is it?", False),
    ],
)
def test_texts_that_tell_left_from_right(text: str, is_side: bool) -> None:
    assert names_a_side(Sample(None, text, ())) == is_side
    assert names_a_side(Sample(None, None, (Turn(text, "yes"),))) == is_side
    assert names_a_side(Sample(None, None, (Turn("where?", text),))) == is_side
