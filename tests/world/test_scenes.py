import json
import random

import numpy as np
import pytest

from ddit.schema import parse, to_data
from ddit.world import (
    CLASSES,
    COLORS,
    HELD_OUT_CLASSES,
    HELD_OUT_COLORS,
    PRESETS,
    SPLITS,
    STYLES,
    WorldConfig,
    is_held_out,
    make_scene,
    relative_position,
    render,
)
from ddit.world.sprites import RAMPS, find_tile, has_natural_color, make_sprite

presets = pytest.mark.parametrize("name", PRESETS)


@presets
def test_scenes_and_their_images_are_pure_functions_of_seed_split_and_index(name):
    config = PRESETS[name]
    forwards = [make_scene(config, "train", i, seed=3) for i in range(20)]
    backwards = [make_scene(config, "train", i, seed=3) for i in reversed(range(20))][::-1]
    assert forwards == backwards
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(forwards, backwards, strict=True))
    assert make_scene(config, "train", 0, seed=4) != forwards[0]


def test_splits_share_no_scene():
    marks = {
        split: {make_scene(PRESETS["fixed-1"], split, i).background[1][2] % len(SPLITS) for i in range(50)}
        for split in SPLITS
    }
    assert marks == {split: {place} for place, split in enumerate(SPLITS)}


@presets
def test_held_out_pairs_never_occur_in_training_and_always_in_their_own_split(name):
    def pairs(scene):
        names = [g.class_name for g in scene.groups]
        return [(g.class_name, g.color) for g in scene.groups] + ([tuple(names)] if len(names) == 2 else [])

    for split, expected in (("train", False), ("val", False), ("test", False), ("heldout", True)):
        for i in range(300):
            scene = make_scene(PRESETS[name], split, i)
            assert any(is_held_out(*pair) for pair in pairs(scene)) == expected


def test_held_out_pairs_are_known_and_leave_every_class_and_colour_its_others():
    assert all(name in CLASSES and color in COLORS for name, color in HELD_OUT_COLORS)
    assert all(a < b and {a, b} <= set(CLASSES) for a, b in HELD_OUT_CLASSES)
    assert is_held_out("dog", "cat")
    assert is_held_out("cat", "dog")
    assert not is_held_out("dog", None)


@presets
def test_boxes_lie_inside_the_image_around_the_objects(name):
    for i in range(200):
        scene = make_scene(PRESETS[name], "test", i)
        image = render(scene).astype(int)
        assert image.shape == (64, 64, 3)
        assert len(scene.objects) <= 4
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
        empty = np.linspace(*scene.background, 64)[:, None]
        is_object = np.abs(image - empty).max(axis=-1) > 20
        covered = np.zeros((64, 64), dtype=bool)
        for left, top, right, bottom in (o.box for o in scene.objects):
            rows = slice(max(int(top) - 1, 0), int(bottom) + 2)  # within a pixel
            columns = slice(max(int(left) - 1, 0), int(right) + 2)
            covered[rows, columns] = True
            assert is_object[rows, columns].mean() > 0.05
        assert not (is_object & ~covered).any()


@presets
def test_two_objects_stand_in_exactly_one_relation(name):
    scenes = (make_scene(PRESETS[name], "train", i) for i in range(200))
    for scene in (s for s in scenes if s.kind == "two"):
        assert len(relative_position(scene.objects[0].box, scene.objects[1].box)) == 1


def test_relative_position_follows_genevals_rule():
    middle = (20, 20, 40, 40)
    assert relative_position((0, 20, 15, 40), middle) == {"left of"}
    assert relative_position((45, 20, 60, 40), middle) == {"right of"}
    assert relative_position((20, 0, 40, 15), middle) == {"above"}
    assert relative_position((20, 45, 40, 60), middle) == {"below"}
    assert relative_position((21, 21, 41, 41), middle) == set()  # within a tenth of both sizes
    assert relative_position((45, 45, 60, 60), middle) == {"right of", "below"}


def test_kinds_come_as_often_as_their_weights_say():
    scenes = [make_scene(PRESETS["free"], "train", i) for i in range(1000)]
    for kind, share in PRESETS["free"].kind_weights().items():
        assert sum(s.kind == kind for s in scenes) / 1000 == pytest.approx(share, abs=0.05)


def test_scene_truth_is_plain_json():
    scene = make_scene(PRESETS["grid"], "val", 7)
    truth = json.loads(json.dumps(scene.to_json()))
    assert [o["class"] for o in truth["objects"]] == [o.class_name for o in scene.objects]
    assert truth["split"] == "val"


def test_config_round_trips_and_names_what_is_wrong():
    config = PRESETS["free"]
    assert parse(WorldConfig, to_data(config)) == config
    with pytest.raises(ValueError, match="unicorn"):
        WorldConfig(classes=("dog", "unicorn"))
    with pytest.raises(ValueError, match="7"):
        WorldConfig(max_objects=7)
    with pytest.raises(ValueError, match="spam"):
        parse(WorldConfig, {"spam": 1})
    with pytest.raises(ValueError, match="night"):
        make_scene(config, "night", 0)


def test_fewer_objects_leave_out_the_kinds_that_need_more():
    config = WorldConfig(max_objects=2)
    scenes = [make_scene(config, "train", i) for i in range(60)]
    assert {s.kind for s in scenes} == {"single", "two", "count"}
    assert max(len(s.objects) for s in scenes) == 2


def test_tints_differ_from_each_other_and_from_every_background():
    rng = random.Random(0)
    for style in STYLES:
        name = rng.choice(CLASSES)
        means = []
        for color in RAMPS:
            sprite = make_sprite(name, style, color, 30)
            means.append(sprite.color.sum(axis=(0, 1)) / (1 - sprite.ground).sum())
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]]
        assert min(gaps) > 40


def test_every_class_has_a_sprite_in_every_style():
    for style in STYLES:
        for name in CLASSES:
            assert (find_tile(name, style)[..., 3] > 128).mean() > 0.1
        assert any(has_natural_color(name, style) for name in CLASSES)
