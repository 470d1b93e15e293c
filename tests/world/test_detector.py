import numpy as np
import pytest
import torch

from ddit.world import (
    PRESETS,
    TAGS,
    Detection,
    Prompt,
    check_detections,
    is_held_out,
    make_prompts,
    make_scene,
    render,
)
from ddit.world.detector import DetectorNet, detect, load_detector, scene_is_right
from ddit.world.train_detector import train_detector
from tools.train_detector import measure_accuracy


def found(name, color=None, box=(0, 0, 20, 20), score=0.9):
    return Detection(name, color, box, score)


LEFT, RIGHT = (2, 20, 28, 46), (36, 20, 62, 46)


def prompt(*include, exclude=()):
    return Prompt("", "", list(include), list(exclude))


def test_a_count_must_be_exact():
    three = prompt({"class": "dog", "count": 3}, exclude=[{"class": "dog", "count": 4}])
    assert not check_detections(three, [found("dog")] * 2)
    assert check_detections(three, [found("dog")] * 3)
    assert not check_detections(three, [found("dog")] * 4)


def test_colours_belong_to_their_object_and_the_most_confident_detection_counts():
    both = prompt({"class": "dog", "count": 1, "color": "red"}, {"class": "car", "count": 1, "color": "blue"})
    assert check_detections(both, [found("dog", "red"), found("car", "blue")])
    assert not check_detections(both, [found("dog", "blue"), found("car", "red")])
    assert not check_detections(
        both, [found("dog", "red", score=0.4), found("dog", "blue"), found("car", "blue")]
    )


def test_positions_are_checked():
    left = prompt({"class": "car", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]})
    assert check_detections(left, [found("dog", box=LEFT), found("car", box=RIGHT)])
    assert not check_detections(left, [found("dog", box=RIGHT), found("car", box=LEFT)])
    assert not check_detections(left, [found("dog", box=LEFT)])


def test_prompts_follow_genevals_grammar_and_metadata():
    prompts = make_prompts(PRESETS["fixed"], 20)
    assert [p.tag for p in prompts] == [tag for tag in TAGS for _ in range(20)]
    assert len({p.text for p in prompts}) == len(prompts)
    assert prompts == make_prompts(PRESETS["fixed"], 20)
    position = next(p for p in prompts if p.tag == "position").to_json()
    assert position["include"][1]["position"][1] == 0
    assert "exclude" in next(p for p in prompts if p.tag == "counting").to_json()


def test_held_out_prompts_name_a_held_out_pair_and_others_none():
    def names_one(asked):
        pairs = [(w["class"], w.get("color")) for w in asked.include]
        if len(asked.include) == 2:
            pairs.append((asked.include[0]["class"], asked.include[1]["class"]))
        return any(is_held_out(*pair) for pair in pairs)

    assert all(map(names_one, make_prompts(PRESETS["fixed"], 10, split="heldout")))
    assert not any(map(names_one, make_prompts(PRESETS["fixed"], 24)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_detector_is_right_on_unseen_scenes(name):
    assert measure_accuracy(load_detector(), PRESETS[name], num_scenes=60, seed=977) >= 0.95


def test_the_detector_is_right_on_held_out_pairs():
    assert (
        measure_accuracy(load_detector(), PRESETS["fixed"], num_scenes=60, split="heldout", seed=977) >= 0.95
    )


def test_a_true_scene_passes_its_own_prompt():
    scene = next(s for i in range(99) if (s := make_scene(PRESETS["fixed"], "test", i)).kind == "two")
    a, b = scene.objects
    colors = {"color": a.color} if a.color else {}
    (seen,) = detect(render(scene)[None])
    assert check_detections(
        prompt({"class": b.class_name, "count": 1}, {"class": a.class_name, "count": 1, **colors}), seen
    )


def test_nothing_is_found_in_an_empty_image():
    assert detect(np.full((2, 64, 64, 3), 190, dtype=np.uint8)) == [[], []]


def test_scene_is_right_asks_for_every_object_and_no_more():
    scene = next(s for i in range(99) if (s := make_scene(PRESETS["fixed"], "test", i)).kind == "two")
    seen = [found(o.class_name, o.color, o.box) for o in scene.objects]
    assert scene_is_right(scene, seen)
    assert not scene_is_right(scene, seen[:1])
    assert not scene_is_right(scene, [*seen, seen[0]])


def test_training_is_a_pure_function_and_saving_keeps_the_features(tmp_path):
    nets = [train_detector(PRESETS["fixed-1"], seed=5, width=8, num_steps=2, batch_size=2) for _ in range(2)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(*weights)
    nets[0].save(tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    loaded = load_detector(tmp_path / "net.safetensors")
    assert loaded.features(images).shape == (2, 8, 16, 16)
    torch.testing.assert_close(
        loaded.features(images), nets[0].features(images).detach(), atol=2e-2, rtol=2e-2
    )


def test_the_detector_is_small():
    assert sum(p.numel() for p in DetectorNet().parameters()) <= 700_000


def test_wrong_images_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        detect(np.zeros((1, 64, 64, 3)))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        load_detector(tmp_path / "other.safetensors")
