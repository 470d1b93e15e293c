"""Several images in one: grids, strips of the steps that led to an image, and the same as an animation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 128, 256
"""Longest side, in pixels, at which images are shown; beyond these they are enlarged or reduced."""

GAP, MOST_LINES = 8, 4
STEP_MILLISECONDS, HELD_MILLISECONDS = 200, 2000

CANDIDATES = "the steps of several candidates for one image cannot be shown"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def comfortable(image: Image.Image) -> Image.Image:
    """The image at a size to be looked at: small ones enlarged by whole numbers, large ones reduced."""
    longest = max(image.size)
    if longest > LARGEST:
        return image.resize(_scaled(image.size, LARGEST / longest), Image.Resampling.LANCZOS)
    factor = max(1, SMALLEST // longest)
    return image.resize(_scaled(image.size, factor), Image.Resampling.NEAREST) if factor > 1 else image


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def image_grid(
    images: Sequence[Image.Image], texts: Sequence[str], *, columns: int | None = None
) -> Image.Image:
    """The images in rows, each above its text, which is wrapped.

    columns: by default as many as make the grid near square.
    """
    if len(images) != len(texts) or not images:
        raise ValueError(f"{len(texts)} texts do not match {len(images)} images")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    grid = [list(range(i, min(i + columns, len(images)))) for i in range(0, len(images), columns)]
    shown = [comfortable(image.convert("RGB")) for image in images]
    width, height = (max(sides) for sides in zip(*(image.size for image in shown), strict=True))
    font = _font(width)
    blocks = ["\n".join(wrap(text, width, font)) for text in texts]
    heights = [height + max(_text_height(blocks[i], font) for i in row) + 2 * GAP for row in grid]
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for row, row_height in zip(grid, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (width + GAP)
            canvas.paste(shown[i], (left, top))
            draw.multiline_text((left, top + height + 2), blocks[i], fill="black", font=font, spacing=2)
        top += row_height
    return canvas


def strip(
    rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], texts: Sequence[str]
) -> Image.Image:
    """A row an image, above its text, and a column a step, below its heading."""
    shown = [[comfortable(frame.convert("RGB")) for frame in row] for row in rows]
    width, height = shown[0][0].size
    font = _font(width)
    total = len(headings) * (width + GAP) + GAP
    blocks = ["\n".join(wrap(text, total - 2 * GAP, font)) for text in texts]
    head = _text_height("0", font) + GAP
    heights = [height + _text_height(block, font) + 2 * GAP for block in blocks]
    canvas = Image.new("RGB", (total, head + sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + column * (width + GAP) for column in range(len(headings))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left + width / 2, GAP / 2), heading, fill="black", font=font, anchor="ma")
    top = head + GAP / 2
    for row, block, row_height in zip(shown, blocks, heights, strict=True):
        for left, frame in zip(lefts, row, strict=True):
            canvas.paste(frame, (left, round(top)))
        draw.multiline_text((GAP, top + height + 2), block, fill="black", font=font, spacing=2)
        top += row_height
    return canvas


def save_animation(path: Path, frames: Sequence[Image.Image]) -> None:
    """Writes an endless GIF of frames of one size; the last one is held."""
    durations = [*[STEP_MILLISECONDS] * (len(frames) - 1), HELD_MILLISECONDS]
    paletted = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    paletted[0].save(
        path, "GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0, optimize=False
    )


def wrap(text: str, width: float, font: Font) -> list[str]:
    """Lines of a text at most `width` pixels wide; a word that is wider is split, what is too much left out."""
    lines = [""]
    for word in text.split():
        whole = f"{lines[-1]} {word}".strip()
        if font.getlength(whole) <= width:
            lines[-1] = whole
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= MOST_LINES:
        return lines
    last = lines[MOST_LINES - 1]
    while last and font.getlength(f"{last} ...") > width:
        last = last[:-1]
    return [*lines[: MOST_LINES - 1], f"{last.rstrip()} ..."]


def _font(width: int) -> Font:
    return ImageFont.load_default(max(11, min(16, width // 11)))


def _text_height(block: str, font: Font) -> int:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return math.ceil(draw.multiline_textbbox((0, 0), block or " ", font=font, spacing=2)[3])


class Film:
    """The images on the way to each finished one, step by step."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.frames: list[list[Image.Image]] = [[] for _ in self.texts]

    def add(self, rows: Sequence[int], images: Iterable[Image.Image]) -> None:
        """What a step gave for some of the images, kept at the size at which it is shown.

        Raises ValueError if one of them is there more than once, as with several candidates for an image.
        """
        if len(set(rows)) < len(rows):
            raise ValueError(CANDIDATES)
        for row, image in zip(rows, images, strict=True):
            self.frames[row].append(comfortable(image))

    def finish(self, images: Iterable[Image.Image]) -> None:
        """Puts the finished images in the place of the last step's."""
        for frames, image in zip(self.frames, images, strict=True):
            frames[-1] = comfortable(image)

    def save(self, path: Path, times: Sequence[float]) -> None:
        """Writes a .gif with a frame a step, or else a strip with a column a step, below its time."""
        if any(len(row) != len(times) for row in self.frames):
            raise ValueError(CANDIDATES)
        if path.suffix.lower() != ".gif":
            strip(self.frames, [f"t = {time:.2f}" for time in times], self.texts).save(path)
            return
        save_animation(path, [image_grid(step, self.texts) for step in zip(*self.frames, strict=True)])
