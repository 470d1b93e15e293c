"""Masks and images on the model's grid."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddit.inference.editing import Grid, Originals, box_mask, check_mask

GRID = Grid(rows=4, columns=6, cell=8)  # 48 pixels wide, 32 high


def cells(*places: tuple[int, int]) -> torch.Tensor:
    found = torch.zeros(4, 6, dtype=torch.bool)
    for row, column in places:
        found[row, column] = True
    return found


@pytest.mark.parametrize(
    ("box", "places"),
    [
        ((8, 0, 16, 8), [(0, 1)]),
        ((15, 7, 17, 9), [(0, 1), (0, 2), (1, 1), (1, 2)]),
        ((47, 31, 48, 32), [(3, 5)]),
    ],
)
def test_a_cell_is_generated_if_one_pixel_of_it_is_white(
    box: tuple[int, int, int, int], places: list[tuple[int, int]]
) -> None:
    assert torch.equal(GRID.touched(box_mask((48, 32), box)), cells(*places))


@pytest.mark.parametrize("factor", [2, 3, 20])
def test_one_pixel_of_a_larger_mask_is_enough_and_none_beside_it_counts(factor: int) -> None:
    size = (48 * factor, 32 * factor)
    last = 16 * factor - 1
    assert torch.equal(GRID.touched(box_mask(size, (last, 0, last + 1, 1))), cells((0, 1)))
    assert torch.equal(GRID.touched(box_mask(size, (last + 1, 0, last + 2, 1))), cells((0, 2)))


def test_a_small_mask_is_enlarged_with_its_image() -> None:
    assert torch.equal(GRID.touched(box_mask((6, 4), (2, 3, 3, 4))), cells((3, 2)))


def test_masks_are_cropped_as_their_images_are() -> None:
    """Of 96 x 32 pixels the middle 48 are drawn."""
    image = np.zeros((32, 96, 3), dtype=np.uint8)
    image[:8, 32:40] = 255
    mask = box_mask((96, 32), (32, 0, 40, 8))
    _, originals = GRID.read(["a"], Image.fromarray(image), mask)
    assert originals.masks is not None
    assert torch.equal(originals.masks[0], cells((0, 1)))
    white = np.asarray(originals.images[0])[..., 0].reshape(4, 8, 6, 8).mean((1, 3)) > 127
    assert torch.equal(torch.from_numpy(white), cells((0, 1)))
    with pytest.raises(ValueError, match="white only outside of the middle 48:32 that is generated"):
        GRID.touched(box_mask((96, 32), (0, 0, 24, 32)))


def test_a_single_one_goes_with_all_of_the_others() -> None:
    image, mask = Image.new("RGB", (48, 32)), box_mask((48, 32), (0, 0, 8, 8))
    other = box_mask((48, 32), (8, 0, 16, 8))
    texts, originals = GRID.read(["a", "b"], image, mask)
    assert texts == ["a", "b"]
    assert len(originals.images) == 2
    assert originals.images[0] is originals.images[1]
    texts, originals = GRID.read(["a"], image, [mask, other])
    assert texts == ["a", "a"]
    keep = originals.keep(slice(0, 2))
    assert keep is not None
    assert torch.equal(~keep[:, 0], torch.stack([cells((0, 0)), cells((0, 1))]))
    texts, originals = GRID.read(["a"], [image, image, image])
    assert texts == ["a"] * 3
    assert originals.keep(slice(0, 3)) is None


def test_what_does_not_match_gets_one_line() -> None:
    image, mask = Image.new("RGB", (48, 32)), box_mask((48, 32), (0, 0, 8, 8))
    with pytest.raises(ValueError, match="2 images do not match 3 prompts"):
        GRID.read(["a", "b", "c"], [image, image], mask)
    with pytest.raises(ValueError, match="2 prompts do not match 3 masks"):
        GRID.read(["a", "b"], image, [mask] * 3)
    with pytest.raises(ValueError, match="a mask of 48x32 does not fit an image of 32x48"):
        GRID.read(["a"], [image, image.rotate(90, expand=True)], mask)
    with pytest.raises(ValueError, match="no masks given"):
        GRID.read(["a"], image, [])


def test_a_mask_without_white_and_a_box_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="the mask is empty"):
        check_mask(Image.new("L", (48, 32)), (48, 32))
    for box in ((10, 0, 10, 8), (8, 0, 4, 8), (-1, 0, 4, 4), (0, 0, 49, 4), (0, 30, 4, 33)):
        with pytest.raises(ValueError, match=r"the box .* is not within an image of 48x32"):
            box_mask((48, 32), box)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1, got "):
        Originals([], None, strength)
