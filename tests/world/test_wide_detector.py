from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.detector import SEED, count_right, load_nets
from ddit.world.detector import DetectorNet
from ddit.world.train_detector import detection_loss, train_wide_detector
from ddit.world.wide import WIDE_CLASSES, WIDE_PRESETS
from ddit.world.wide.checked import CheckNet, detect_checked, load_check
from ddit.world.wide.negatives import NEGATIVES, Negative, make_negative, training_image
from ddit.world.wide.train_check import collect_proposals, train_check

CONFIGS = [WIDE_PRESETS["wide"]]


LEAST_RIGHT = {
    "wide-easy": 0.9,
    "wide-1": 0.95,
    "wide": 0.9,
    "wide-half-hidden": 0.55,
    "wide-fixed": 0.9,
    "wide-128": 0.9,
}
"""Well below what benchmarks/detector.md measures on more scenes."""


@pytest.mark.parametrize("name", WIDE_PRESETS)
def test_the_detector_is_right_on_unseen_scenes(name: str) -> None:
    assert count_right(load_nets(), name, "test", 80, 0.5) >= LEAST_RIGHT[name] * 80


def test_the_detector_is_right_on_held_out_pairs() -> None:
    assert count_right(load_nets(), "wide", "heldout", 80, 0.5) >= 0.88 * 80


@pytest.mark.parametrize("kind", NEGATIVES)
def test_hardly_anything_is_found_where_nothing_is(kind: Negative) -> None:
    images = np.stack([make_negative(kind, i, seed=SEED + 1) for i in range(80)])
    found = detect_checked(images, threshold=0.5)
    assert sum(map(bool, found)) <= 0.15 * 80


def test_the_detector_is_at_most_3_mb() -> None:
    folder = files("ddit.world.wide")
    sizes = [len(folder.joinpath(f"{n}.safetensors").read_bytes()) for n in ("detector", "check")]
    assert sum(sizes) <= 3_000_000


@pytest.mark.parametrize("kind", NEGATIVES)
def test_negatives_are_pure_functions_and_differ(kind: Negative) -> None:
    images = [make_negative(kind, i, seed=3) for i in range(12)]
    assert all(np.array_equal(a, make_negative(kind, i, seed=3)) for i, a in enumerate(images))
    assert len({image.tobytes() for image in images}) == 12
    assert all(image.shape == (64, 64, 3) for image in images)


def test_training_images_are_true_scenes_scenes_with_decoys_decoys_and_noise() -> None:
    shown = [training_image(CONFIGS, i, seed=0) for i in range(400)]
    assert 0.07 < sum(not objects for _, objects in shown) / 400 < 0.22
    again = training_image(CONFIGS, 7, seed=0)
    assert np.array_equal(again[0], shown[7][0])


def test_a_batch_without_objects_has_a_loss_and_training_repeats() -> None:
    nets = [train_wide_detector(seed=1, width=8, num_steps=2, batch_size=2) for _ in range(2)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(*weights)
    out = nets[0](torch.zeros(2, 3, 64, 64))
    assert detection_loss(out, [(), ()], nets[0].classes).item() > 0


def test_the_second_net_is_trained_on_proposals_and_survives_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = DetectorNet(8, WIDE_CLASSES)
    assert first.heads.bias is not None
    torch.nn.init.zeros_(first.heads.bias)  # proposes something everywhere
    proposals = collect_proposals(first.eval(), 2, seed=1, batch_size=2)
    assert proposals.views.shape[1:] == (32, 32, 3)
    proposals.is_true[:3] = True
    nets = [train_check(proposals, width=8, num_steps=2, batch_size=8) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    nets[0].save(tmp_path / "check.safetensors")
    loaded = load_check(tmp_path / "check.safetensors")
    assert isinstance(loaded, CheckNet)
    views = torch.rand(3, 15, 32, 32)
    torch.testing.assert_close(loaded(views), nets[0](views).detach(), atol=1e-2, rtol=1e-2)
