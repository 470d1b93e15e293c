import random
from collections import Counter

import numpy as np
import pytest

from ddit.schema import parse, to_data
from ddit.world import COLORS, SPLITS, STYLES
from ddit.world.wide import (
    WIDE_CLASSES,
    WIDE_PRESETS,
    WideConfig,
    is_held_out,
    make_scene,
    render,
)
from ddit.world.wide.presets import GROUNDS, TONES, WIDE_HELD_OUT_CLASSES, WIDE_HELD_OUT_COLORS
from ddit.world.wide.scenes import draw_ground, share_hidden
from ddit.world.wide.sprites import find_tile, make_sprite, natural_color

WIDE = WIDE_PRESETS["wide"]
SCENES = [make_scene(WIDE, "train", i) for i in range(1500)]
presets = pytest.mark.parametrize("name", WIDE_PRESETS)


@presets
def test_scenes_and_images_are_pure_functions_of_seed_split_and_index(name: str) -> None:
    config = WIDE_PRESETS[name]
    forwards = [make_scene(config, "train", i, seed=3) for i in range(20)]
    backwards = [make_scene(config, "train", i, seed=3) for i in reversed(range(20))][::-1]
    assert forwards == backwards
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(forwards, backwards, strict=True))
    assert make_scene(config, "train", 0, seed=4) != forwards[0]


def test_there_are_forty_classes_and_more_in_three_styles_each_with_its_own_drawing() -> None:
    assert len(WIDE_CLASSES) >= 40
    assert len(STYLES) == 3
    tiles = [find_tile(name, style).tobytes() for name in WIDE_CLASSES for style in STYLES]
    assert len(set(tiles)) == len(tiles)
    assert {o.class_name for s in SCENES for o in s.objects} == set(WIDE_CLASSES)
    assert {o.style for s in SCENES for o in s.objects} == set(STYLES)
    assert {o.color for s in SCENES for o in s.objects} == {None, *COLORS}


def test_scenes_have_one_to_six_objects_of_up_to_four_kinds() -> None:
    counts = Counter(len(s.objects) for s in SCENES)
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    for number, share in enumerate(WIDE.counts, start=1):
        assert abs(counts[number] / len(SCENES) - share) < 0.04
    kinds = Counter(len(s.groups) for s in SCENES)
    assert set(kinds) == {1, 2, 3, 4}


def test_objects_stay_in_the_image_and_hardly_overlap() -> None:
    for scene in SCENES:
        for i, item in enumerate(scene.objects):
            assert min(item.left, item.top) >= 0
            assert max(item.left, item.top) + item.size <= 64
            for other in scene.objects[:i]:
                assert share_hidden(item.box, other.box) <= WIDE.max_overlap


def test_sizes_run_from_14_pixels_to_the_whole_image() -> None:
    sizes = [o.size for s in SCENES for o in s.objects]
    assert min(sizes) == 14
    assert max(sizes) >= 62
    for number, largest in enumerate(WIDE.max_sizes, start=1):
        drawn = [o.size for s in SCENES if len(s.objects) == number for o in s.objects]
        assert largest - 4 <= max(drawn) <= largest


def test_grounds_are_of_five_kinds_and_show_their_colour() -> None:
    found = Counter(s.ground.kind for s in SCENES)
    for kind in GROUNDS:
        assert abs(found[kind] / len(SCENES) - WIDE.grounds[kind]) < 0.04
    for scene in SCENES[:300]:
        image = draw_ground(scene.ground, 64).astype(int)
        mean = image.mean((0, 1))
        if scene.ground.kind == "white":
            assert image.min() >= 249
        elif scene.ground.kind == "black":
            assert image.max() <= 6
        else:
            offsets = {tone: np.array(c) - np.mean(c) for tone, c in TONES.items()}
            nearest = min(offsets, key=lambda tone: np.abs(mean - mean.mean() - offsets[tone]).sum())
            assert nearest == scene.ground.tone
            assert (np.ptp(image.mean(2)) > 4) == (scene.ground.kind != "plain")


def test_nothing_is_white_on_white_or_black_on_black() -> None:
    assert not any(o.color == s.ground.kind for s in SCENES for o in s.objects)


def test_half_of_an_object_is_hidden_where_that_is_asked_for() -> None:
    config = WideConfig(half_hidden=1.0)
    for index in range(200):
        scene = make_scene(config, "train", index)
        shares = [
            share_hidden(front.box, back.box)
            for i, back in enumerate(scene.objects)
            for front in scene.objects[i + 1 :]
        ]
        assert len(scene.objects) == 1 or max(shares) >= 0.35
        assert sum(share > config.max_overlap for share in shares) <= 1


def test_fixed_places_are_the_middle_halves_quadrants_or_two_rows_of_three() -> None:
    config = WIDE_PRESETS["wide-fixed"]
    third = {10, 32, 54, 16, 48}
    fields = {1: {32}, 2: {16, 32, 48}, 3: {16, 48}, 4: {16, 48}, 5: third, 6: third}
    seen = set()
    for index in range(300):
        objects = make_scene(config, "train", index).objects
        seen.add(len(objects))
        near = {
            tuple(min(fields[len(objects)], key=lambda c, v=v: abs(v - c)) for v in (o.x, o.y))
            for o in objects
        }
        assert len(near) == len(objects)
        for item in objects:
            assert all(min(abs(v - c) for c in fields[len(objects)]) <= 3 for v in (item.x, item.y))
        assert {o.size for o in objects} == {config.max_sizes[len(objects) - 1]}
    assert seen == {1, 2, 3, 4, 5, 6}
    with pytest.raises(ValueError, match="free layout"):
        WideConfig(layout="fixed", half_hidden=0.5)


def test_a_scene_is_the_same_at_every_size() -> None:
    for index in range(50):
        small, large = (make_scene(WIDE_PRESETS[n], "test", index) for n in ("wide", "wide-128"))
        assert [(2 * o.left, 2 * o.top, 2 * o.size) for o in small.objects] == [
            (o.left, o.top, o.size) for o in large.objects
        ]
        coarse = render(large).reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(coarse - render(small)).mean() < 6
    odd = make_scene(WideConfig(size=96), "test", 3)
    assert render(odd).shape == (96, 96, 3)


def test_splits_share_no_scene_and_train_no_held_out_pair() -> None:
    for split in SPLITS:
        for index in range(150):
            scene = make_scene(WIDE, split, index)
            mark = sum(o.left + o.top + o.size for o in scene.objects) % len(SPLITS)
            assert mark == SPLITS.index(split)
            names = {o.class_name for o in scene.objects}
            pairs = [(o.class_name, o.color) for o in scene.objects]
            holds_one = any(is_held_out(*p) for p in pairs) or any(
                is_held_out(a, b) for a in names for b in names
            )
            if split != "detector":
                assert holds_one == (split == "heldout")


def test_held_out_pairs_name_known_things_and_every_class_once() -> None:
    assert sorted(n for pair in WIDE_HELD_OUT_CLASSES for n in pair) == sorted(WIDE_CLASSES)
    assert all(name in WIDE_CLASSES and color in COLORS for name, color in WIDE_HELD_OUT_COLORS)
    assert len(set(WIDE_HELD_OUT_COLORS)) == len(WIDE_HELD_OUT_COLORS)


def test_colours_look_like_themselves() -> None:
    """Of a tinted sprite the middle colour is nearest to its own colour's."""
    from ddit.world.sprites import RAMPS

    rng = random.Random(0)
    for _ in range(150):
        name, style, color = rng.choice(WIDE_CLASSES), rng.choice(STYLES), rng.choice(COLORS)
        if natural_color(name, style)[1] == color:
            continue
        pixels = np.asarray(make_sprite(name, style, color, 40)).astype(float)
        middle = np.median(pixels[pixels[..., 3] > 200][:, :3], axis=0)
        distance = {
            c: min(np.abs(middle - (np.array(a) * (1 - t) + np.array(b) * t)).sum()
                   for a, b in ((low, mid), (mid, high)) for t in np.linspace(0, 1, 9))
            for c, (low, mid, high) in RAMPS.items()
        }  # fmt: skip
        assert distance[color] <= min(distance.values()) + 30, (name, style, color)


def test_a_configuration_is_checked_and_survives_json() -> None:
    assert parse(WideConfig, to_data(WIDE)) == WIDE
    for wrong, word in (
        ({"classes": ("unicorn",)}, "unicorn"), ({"min_size": 40}, "max_sizes"), ({"counts": ()}, "counts"),
        ({"max_sizes": (20, 30, 20, 20, 20, 20)}, "grow"), ({"half_hidden": 2.0}, "half_hidden"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            parse(WideConfig, wrong)
    with pytest.raises(ValueError, match="tset"):
        make_scene(WIDE, "tset", 0)
