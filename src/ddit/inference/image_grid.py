"""Several pictures on one: contact sheets, strips of the steps that led to a picture, and the same as an animation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 128, 256
"""Longest side, in pixels, at which pictures are shown; beyond these they are enlarged or reduced."""

GAP, MOST_LINES = 8, 4
STEP_MILLISECONDS, HELD_MILLISECONDS = 200, 2000

CANDIDATES = "the steps of several candidates for one picture cannot be shown"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def comfortable(image: Image.Image) -> Image.Image:
    """The picture at a size to be looked at: small ones enlarged by whole numbers, large ones reduced."""
    longest = max(image.size)
    if longest > LARGEST:
        return image.resize(_scaled(image.size, LARGEST / longest), Image.Resampling.LANCZOS)
    factor = max(1, SMALLEST // longest)
    return image.resize(_scaled(image.size, factor), Image.Resampling.NEAREST) if factor > 1 else image


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def image_grid(
    pictures: Sequence[Image.Image], texts: Sequence[str], *, columns: int | None = None
) -> Image.Image:
    """The pictures in rows, each above its text, which is wrapped.

    columns: by default as many as make the sheet near square.
    """
    if len(pictures) != len(texts) or not pictures:
        raise ValueError(f"{len(texts)} texts do not match {len(pictures)} pictures")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    grid = [list(range(i, min(i + columns, len(pictures)))) for i in range(0, len(pictures), columns)]
    shown = [comfortable(picture.convert("RGB")) for picture in pictures]
    width, height = (max(sides) for sides in zip(*(picture.size for picture in shown), strict=True))
    font = _font(width)
    blocks = ["\n".join(wrap(text, width, font)) for text in texts]
    heights = [height + max(_text_height(blocks[i], font) for i in row) + 2 * GAP for row in grid]
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, row_height in zip(grid, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (width + GAP)
            sheet.paste(shown[i], (left, top))
            draw.multiline_text((left, top + height + 2), blocks[i], fill="black", font=font, spacing=2)
        top += row_height
    return sheet


def strip(
    rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], texts: Sequence[str]
) -> Image.Image:
    """A row a picture, above its text, and a column a step, below its heading."""
    shown = [[comfortable(frame.convert("RGB")) for frame in row] for row in rows]
    width, height = shown[0][0].size
    font = _font(width)
    total = len(headings) * (width + GAP) + GAP
    blocks = ["\n".join(wrap(text, total - 2 * GAP, font)) for text in texts]
    head = _text_height("0", font) + GAP
    heights = [height + _text_height(block, font) + 2 * GAP for block in blocks]
    sheet = Image.new("RGB", (total, head + sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + column * (width + GAP) for column in range(len(headings))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left + width / 2, GAP / 2), heading, fill="black", font=font, anchor="ma")
    top = head + GAP / 2
    for row, block, row_height in zip(shown, blocks, heights, strict=True):
        for left, frame in zip(lefts, row, strict=True):
            sheet.paste(frame, (left, round(top)))
        draw.multiline_text((GAP, top + height + 2), block, fill="black", font=font, spacing=2)
        top += row_height
    return sheet


def save_animation(path: Path, frames: Sequence[Image.Image]) -> None:
    """Writes an endless GIF of frames of one size; the last one is held."""
    durations = [*[STEP_MILLISECONDS] * (len(frames) - 1), HELD_MILLISECONDS]
    paletted = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    paletted[0].save(
        path, "GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0, optimize=False
    )


def wrap(text: str, width: float, font: Font) -> list[str]:
    """Lines of a text at most `width` pixels wide; a word that is wider is broken, what is too much left out."""
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
    """The pictures on the way to each finished one, step by step."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.frames: list[list[Image.Image]] = [[] for _ in self.texts]

    def add(self, rows: Sequence[int], pictures: Iterable[Image.Image]) -> None:
        """What a step gave for some of the pictures, kept at the size at which it is shown.

        Raises ValueError if one of them is there more than once, as with several candidates for a picture.
        """
        if len(set(rows)) < len(rows):
            raise ValueError(CANDIDATES)
        for row, picture in zip(rows, pictures, strict=True):
            self.frames[row].append(comfortable(picture))

    def finish(self, pictures: Iterable[Image.Image]) -> None:
        """Puts the finished pictures in the place of the last step's."""
        for frames, picture in zip(self.frames, pictures, strict=True):
            frames[-1] = comfortable(picture)

    def save(self, path: Path, times: Sequence[float]) -> None:
        """Writes a .gif with a frame a step, or else a strip with a column a step, below its time."""
        if any(len(row) != len(times) for row in self.frames):
            raise ValueError(CANDIDATES)
        if path.suffix.lower() != ".gif":
            strip(self.frames, [f"t = {time:.2f}" for time in times], self.texts).save(path)
            return
        save_animation(path, [image_grid(step, self.texts) for step in zip(*self.frames, strict=True)])
