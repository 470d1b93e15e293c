"""A true image is its own nearest one; shifted, blurred and flat ones are further, another class the furthest."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ddit.eval.geneval import WideJudge, WorldJudge
from ddit.eval.likeness import SMALL, WIDE, Likeness, SpriteWorld, find_nearest, tally_likeness
from ddit.world import PRESETS, Prompt, Scene, make_scene, render
from ddit.world.wide import WIDE_PRESETS, WideScene
from ddit.world.wide import make_scene as make_wide_scene
from ddit.world.wide import render as render_wide

NUM = 10


def single(world: SpriteWorld) -> list[tuple[Scene | WideScene, Image.Image]]:
    """Scenes of one object with their images."""
    if world is SMALL:
        scenes = (make_scene(PRESETS["free"], "test", i) for i in range(40))
        chosen = [s for s in scenes if s.kind == "single"][:NUM]
        return [(scene, Image.fromarray(render(scene))) for scene in chosen]
    wide = [make_wide_scene(WIDE_PRESETS["wide-1"], "test", i) for i in range(NUM)]
    return [(scene, Image.fromarray(render_wide(scene))) for scene in wide]


def blend(image: Image.Image) -> Image.Image:
    """Shifted by half a pixel."""
    pixels = np.asarray(image).astype(float)
    return Image.fromarray(((pixels + np.roll(pixels, 1, axis=1)) / 2).astype(np.uint8))


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.5))


def near(
    world: SpriteWorld,
    change: Callable[[Image.Image], Image.Image] = lambda image: image,
    *,
    other: bool = False,
) -> list[Likeness]:
    """Likenesses to the right class, or to the next one in the world's list."""
    found = []
    for scene, image in single(world):
        (item,) = scene.objects
        name = item.class_name
        if other:
            name = world.classes[(world.classes.index(name) + 1) % len(world.classes)]
        found.append(find_nearest(change(image), name, item.color, world))
    return found


@pytest.mark.parametrize("world", [SMALL, WIDE], ids=["small", "wide"])
def test_a_true_image_is_its_own_nearest_and_others_are_further_in_order(world: SpriteWorld) -> None:
    true, shifted, blurred, other = (
        near(world),
        near(world, blend),
        near(world, blur),
        near(world, other=True),
    )
    for (scene, _), found in zip(single(world), true, strict=True):
        (item,) = scene.objects
        assert (found.style, found.color) == (item.style, item.color)
        assert (found.left, found.top, found.size) == (item.left, item.top, item.size)
    psnr, distance = (
        [np.mean([getattr(f, name) for f in part]) for part in (true, shifted, blurred, other)]
        for name in ("psnr", "distance")
    )
    assert psnr == sorted(psnr, reverse=True)
    assert distance == sorted(distance)
    assert min(f.psnr for f in true) > 45
    assert psnr[1] < 32 < 45 < psnr[0]
    assert psnr[3] < 18
    assert max(f.distance for f in true) < 0.01 < 0.4 < distance[3]


@pytest.mark.parametrize("world", [SMALL, WIDE], ids=["small", "wide"])
def test_without_a_colour_the_nearest_may_have_any(world: SpriteWorld) -> None:
    scene, image = next((s, i) for s, i in single(world) if s.objects[0].color)
    (item,) = scene.objects
    found = find_nearest(image, item.class_name, None, world)
    assert (found.color, found.size) == (item.color, item.size)


def test_the_smallest_place_of_a_flat_image_is_not_near() -> None:
    """A white image has white sprites that are nearly all ground: their boxes tell."""
    found = find_nearest(Image.new("RGB", (64, 64), "white"), "apple", None, WIDE)
    assert found.psnr < 25


def test_judges_measure_prompts_of_one_object_alone() -> None:
    one = Prompt("a dog", "bare", [{"class": "dog", "count": 1}])
    two = Prompt("two dogs", "counting", [{"class": "dog", "count": 2}], [{"class": "dog", "count": 3}])
    image = Image.new("RGB", (128, 128), "gray")
    for judge in (WorldJudge(), WideJudge()):
        first, second = judge.score([one, two], [image, image])
        assert first.likeness is not None
        assert first.to_json()["psnr"] == round(first.likeness.psnr, 3)
        assert second.likeness is None
        assert "psnr" not in second.to_json()


def test_means_have_intervals_and_no_image_has_no_figure() -> None:
    found = [Likeness(psnr, 0.5, "noto", None, 0, 0, 20) for psnr in (20.0, 24.0)]
    psnr, distance = tally_likeness(found)
    assert (psnr.value, psnr.num) == (22, 2)
    assert psnr.limits == pytest.approx((22 - 1.96 * 2 / 2**0.5, 22 + 1.96 * 2 / 2**0.5))
    assert distance.limits == pytest.approx((0.5, 0.5))
    assert tally_likeness([]) == []
