from importlib.resources import files

import numpy as np
import pytest
import torch

from benchmarks.detector import SEED, count_right
from ddit.world.detector import detect, load_detector
from ddit.world.train_detector import detection_loss, train_wide_detector
from ddit.world.wide import WIDE_CLASSES, WIDE_PRESETS
from ddit.world.wide.negatives import NEGATIVES, Negative, make_negative, training_image

CONFIGS = [WIDE_PRESETS["wide"]]


@pytest.mark.parametrize("name", WIDE_PRESETS)
def test_the_detector_is_right_on_unseen_scenes(name: str) -> None:
    net = load_detector(classes=WIDE_CLASSES)
    assert count_right(net, name, "test", 80, 0.5) >= 0.93 * 80


def test_the_detector_is_right_on_held_out_pairs() -> None:
    assert count_right(load_detector(classes=WIDE_CLASSES), "wide", "heldout", 80, 0.5) >= 0.93 * 80


@pytest.mark.parametrize("kind", NEGATIVES)
def test_hardly_anything_is_found_where_nothing_is(kind: Negative) -> None:
    images = np.stack([make_negative(kind, i, seed=SEED + 1) for i in range(80)])
    found = detect(images, net=load_detector(classes=WIDE_CLASSES), threshold=0.5)
    assert sum(map(bool, found)) <= 0.1 * 80


def test_the_detector_is_at_most_3_mb() -> None:
    assert len(files("ddit.world.wide").joinpath("detector.safetensors").read_bytes()) <= 3_000_000


@pytest.mark.parametrize("kind", NEGATIVES)
def test_negatives_are_pure_functions_and_differ(kind: Negative) -> None:
    images = [make_negative(kind, i, seed=3) for i in range(12)]
    assert all(np.array_equal(a, make_negative(kind, i, seed=3)) for i, a in enumerate(images))
    assert len({image.tobytes() for image in images}) == 12
    assert all(image.shape == (64, 64, 3) for image in images)


def test_training_images_are_true_scenes_scenes_with_decoys_decoys_and_noise() -> None:
    shown = [training_image(CONFIGS, i, seed=0) for i in range(200)]
    assert 0.1 < sum(not objects for _, objects in shown) / 200 < 0.3
    again = training_image(CONFIGS, 7, seed=0)
    assert np.array_equal(again[0], shown[7][0])


def test_a_batch_without_objects_has_a_loss_and_training_repeats() -> None:
    nets = [train_wide_detector(seed=1, width=8, num_steps=2, batch_size=2) for _ in range(2)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(*weights)
    out = nets[0](torch.zeros(2, 3, 64, 64))
    assert detection_loss(out, [(), ()], nets[0].classes).item() > 0
