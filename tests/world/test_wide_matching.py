"""The likeness of detected objects to true sprites."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ddit.world.geneval import Detection
from ddit.world.wide import WIDE_CLASSES, WIDE_PRESETS
from ddit.world.wide.matching import match_sprites
from ddit.world.wide.scenes import WideObject, WideScene, make_scene, render

SCENES = [make_scene(WIDE_PRESETS["wide-easy"], "train", index, seed=3) for index in range(24)]


def found_in(scene: WideScene) -> list[Detection]:
    return [Detection(o.class_name, o.color, o.box, 1.0) for o in scene.objects]


def likeness(images: list[np.ndarray], found: list[list[Detection]]) -> np.ndarray:
    return np.concatenate(match_sprites(np.stack(images), found))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [render(scene) for scene in SCENES]


@pytest.fixture(scope="module")
def truth() -> list[list[Detection]]:
    return [found_in(scene) for scene in SCENES]


def test_true_objects_look_like_their_sprites_and_like_no_others(
    images: list[np.ndarray], truth: list[list[Detection]]
) -> None:
    own = likeness(images, truth)
    after = dict(zip(WIDE_CLASSES, [*WIDE_CLASSES[1:], WIDE_CLASSES[0]], strict=True))
    others = likeness(images, [[d._replace(class_name=after[d.class_name]) for d in ds] for ds in truth])
    recolored = [[d._replace(color="blue" if d.color != "blue" else "red") for d in ds] for ds in truth]
    assert np.median(own) > 28
    assert np.median(others) < 18
    assert np.median(likeness(images, recolored)) < 18
    assert ((own > others).mean()) > 0.97


def test_the_more_an_image_is_blurred_the_less_it_looks_like_them(
    images: list[np.ndarray], truth: list[list[Detection]]
) -> None:
    def blurred(radius: float) -> list[np.ndarray]:
        return [
            np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for image in images
        ]

    sharp, soft, softer = (likeness(each, truth).mean() for each in (images, blurred(1), blurred(3)))
    assert sharp > soft + 2
    assert soft > softer + 2


def test_a_box_that_is_a_little_off_costs_little(
    images: list[np.ndarray], truth: list[list[Detection]]
) -> None:
    def moved(one: Detection) -> Detection:
        left, top, right, bottom = one.box
        return one._replace(box=(left + 1, top - 1, right + 2, bottom))

    off = likeness(images, [[moved(one) for one in found] for found in truth])
    assert np.median(off) > 26


def test_a_flat_shape_is_less_like_a_sprite_than_the_sprite() -> None:
    ground = render(replace(SCENES[0], objects=()))
    dog = WideObject("dog", "red", "noto", 16, 16, 32)
    true = render(replace(SCENES[0], objects=(dog,)))
    flat = ground.copy()
    flat[16:48, 16:48] = true[16:48, 16:48].mean((0, 1))
    found = [Detection("dog", "red", dog.box, 1.0)]
    sharp, blurred = likeness([true, flat], [found, found])
    assert sharp > 28
    assert blurred < sharp - 8


def test_values_are_of_their_images_in_their_order(
    images: list[np.ndarray], truth: list[list[Detection]]
) -> None:
    shown = [truth[0], [], truth[1]]
    together = match_sprites(np.stack([images[0], images[5], images[1]]), shown)
    assert [len(values) for values in together] == [len(found) for found in shown]
    alone = [match_sprites(images[k][None], [truth[k]])[0] for k in (0, 1)]
    np.testing.assert_allclose(together[0] + together[2], alone[0] + alone[1], atol=1e-3)
