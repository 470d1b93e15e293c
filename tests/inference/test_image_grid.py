"""Grids show every image and every text, strips every step, animations hold their last frame."""

from pathlib import Path

import pytest
from PIL import Image, ImageFont, ImageSequence

from ddit.inference.image_grid import (
    GAP,
    HELD_MILLISECONDS,
    MOST_LINES,
    Film,
    comfortable,
    image_grid,
    strip,
    wrap,
)

COLORS = ["red", "green", "blue", "yellow", "purple"]


def squares(side: int = 64, num: int = 5) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), COLORS[i % 5]) for i in range(num)]


def has_ink(image: Image.Image, box: tuple[int, int, int, int]) -> bool:
    low, _ = image.crop(box).convert("L").getextrema()
    return isinstance(low, int) and low < 128


@pytest.mark.parametrize(
    ("size", "shown"),
    [((16, 16), (128, 128)), ((64, 48), (128, 96)), ((200, 100), (200, 100)), ((1024, 512), (256, 128))],
)
def test_images_are_shown_at_a_comfortable_size(size: tuple[int, int], shown: tuple[int, int]):
    assert comfortable(Image.new("RGB", size)).size == shown


@pytest.mark.parametrize(("num", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_a_grid_is_near_square_and_has_every_image_above_its_text(num: int, columns: int):
    grid = image_grid(squares(num=num), ["a text"] * num)
    assert grid.width == columns * (128 + GAP) + GAP
    row_height = (grid.height - GAP) // -(-num // columns)
    for i, image in enumerate(squares(num=num)):
        left, top = GAP + i % columns * (128 + GAP), GAP + i // columns * row_height
        assert grid.getpixel((left + 64, top + 64)) == image.getpixel((0, 0))
        assert has_ink(grid, (left, top + 128, left + 128, top + row_height - GAP))


def test_a_long_text_makes_its_row_higher_and_any_script_is_taken():
    short = image_grid(squares(num=4), ["a"] * 4)
    long = image_grid(squares(num=4), ["a", "a", "a text of a good many words that needs lines", "書 Bücher"])
    assert long.height > short.height
    assert long.width == short.width
    image_grid(squares(num=1), [""])


def test_images_of_several_sizes_share_a_grid():
    grid = image_grid([Image.new("RGB", (300, 100)), Image.new("L", (64, 64))], ["wide", "grey"])
    assert grid.width == 2 * (256 + GAP) + GAP


def test_numbers_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="1 texts do not match 2 images"):
        image_grid(squares(num=2), ["a"])


def test_lines_fit_their_width_and_nothing_is_lost_before_the_limit():
    font = ImageFont.load_default(12)
    text = "a photo of a red car above two blue umbrellas"
    lines = wrap(text, 120, font)
    assert " ".join(lines) == text
    assert max(font.getlength(line) for line in lines) <= 120
    corrupt = wrap("x" * 30, 60, font)
    assert "".join(corrupt) == "x" * 30
    cut = wrap("word " * 99, 120, font)
    assert len(cut) == MOST_LINES
    assert cut[-1].endswith(" ...")
    assert font.getlength(cut[-1]) <= 120


def test_a_strip_has_a_row_an_image_and_a_column_a_step():
    frames = squares(num=3)
    grid = strip([frames, frames[::-1]], ["t = 1.00", "t = 0.60", "t = 0.20"], ["one", "two"])
    assert grid.width == 3 * (128 + GAP) + GAP
    half = grid.height // 2
    for column in range(3):
        middle = GAP + column * (128 + GAP) + 64
        colors = [grid.getpixel((middle, y)) for y in (half // 2, half + half // 2)]
        assert colors == [frames[column].getpixel((0, 0)), frames[2 - column].getpixel((0, 0))]
        assert has_ink(grid, (middle - 40, 0, middle + 40, GAP + 10))


def film(num_steps: int = 4) -> Film:
    made = Film(["a red square", "a green one"])
    for step in range(num_steps):
        for row in (0, 1):  # as in two batches
            made.add([row], [Image.new("RGB", (64, 64), (step * 60, 0, 0))])
    return made


def test_a_film_becomes_a_strip_that_ends_with_the_images(tmp_path: Path):
    made = film()
    made.finish(squares(num=2))
    made.save(tmp_path / "film.png", [1.0, 0.9, 0.75, 0.5])
    image = Image.open(tmp_path / "film.png")
    assert image.width == 4 * (128 + GAP) + GAP
    assert image.getpixel((image.width - 64, image.height // 4)) == (255, 0, 0)


def test_a_film_of_several_candidates_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="several candidates"):
        Film(["a", "b"]).add([0, 0], squares(num=2))
    with pytest.raises(ValueError, match="several candidates"):
        film(num_steps=4).save(tmp_path / "film.png", [1.0, 0.5])


def test_a_film_becomes_an_animation_that_holds_its_end(tmp_path: Path):
    made = film()
    made.finish(squares(num=2))
    made.save(tmp_path / "film.gif", [1.0, 0.9, 0.75, 0.5])
    with Image.open(tmp_path / "film.gif") as image:
        frames = [
            (f.convert("RGB").getpixel((GAP + 64, GAP + 64)), f.info["duration"])
            for f in ImageSequence.Iterator(image)
        ]
        assert image.info["loop"] == 0
    assert [color for color, _ in frames] == [(0, 0, 0), (60, 0, 0), (120, 0, 0), (255, 0, 0)]
    assert frames[-1][1] == HELD_MILLISECONDS
    assert frames[0][1] < HELD_MILLISECONDS
