"""Small sets of images as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"rot": (200, 30, 30), "grün": (30, 200, 30), "blau": (30, 30, 200)}


def save_image(
    path: Path, colour: tuple[int, int, int], number: int, size: tuple[int, int] = (40, 40)
) -> None:
    """An image of one colour with a dark corner that differs from number to number."""
    width, height = size
    pixels = np.full((height, width, 3), colour, np.uint8)
    pixels[: 2 + number % (height // 2), : 2 + number % (width // 2)] //= 2
    pixels[-1, -1] = number % 256, number // 256, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for the quickest number of threads, which other tests would be left with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: three classes of 16 images."""
    folder = tmp_path_factory.mktemp("classes")
    for place, (name, colour) in enumerate(COLOURS.items()):
        for number in range(16):
            save_image(folder / name / f"{number}.png", colour, 16 * place + number)
    return folder


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON list of 60 images of many sizes with German captions and emoji, and questions about them."""
    folder = tmp_path_factory.mktemp("listed")
    entries, asked = [], []
    sizes = [(20, 20), (2000, 250), (25, 200), (64, 48)]
    for number in range(60):
        name = [*COLOURS][number % 3]
        file = f"{number}.png"
        save_image(folder / file, COLOURS[name], number, sizes[number % 4])
        entries.append({"image_path": file, "caption": f"Ein schönes Bild in {name} 🎨"})
        asked.append(["Welche Farbe ist links?", name, file])
    (folder / "captions.json").write_text(json.dumps(entries))
    (folder / "questions.json").write_text(json.dumps(asked))
    return folder
