"""Build src/ddit/world/atlas.png and atlas.json from unpacked npm packages.

npm pack @iconify-json/noto @iconify-json/twemoji @iconify-json/fluent-emoji-flat
# unpack each into FOLDER/<name, without @iconify-json/>
(cd FOLDER && npm install @resvg/resvg-js)
python tools/build_atlas.py FOLDER
"""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddit.world.presets import CLASSES, STYLES

TILE = 64
PACKAGES = {"noto": "noto", "twemoji": "twemoji", "fluent": "fluent-emoji-flat"}
ICONS = {
    "apple": "red-apple", "boat": "sailboat", "book": "closed-book", "cake": "birthday-cake",
    "car": "automobile", "cat": "cat-face", "clock": "alarm-clock", "cup": "hot-beverage",
    "donut": "doughnut", "sheep": "ewe",
}  # fmt: skip
NATURAL: dict[str, dict[str, str | None]] = {
    "noto": {
        "airplane": None, "bicycle": None, "bus": None, "cake": None, "dog": None, "donut": None,
        "elephant": None, "train": None, "apple": "red", "banana": "yellow", "book": "red", "car": "red",
        "carrot": "orange",
    },
    "twemoji": {
        "airplane": None, "boat": None, "bus": None, "dog": None, "donut": None, "elephant": None,
        "apple": "red", "bicycle": "red", "bird": "red", "book": "red", "car": "red", "carrot": "orange",
        "horse": "brown", "umbrella": "purple",
    },
    "fluent": {
        "airplane": None, "boat": None, "bus": None, "dog": None, "elephant": None, "train": None,
        "apple": "red", "banana": "yellow", "bird": "red", "book": "red", "car": "red", "carrot": "orange",
        "chair": "brown", "horse": "brown", "umbrella": "purple",
    },
}  # fmt: skip
"""Sprites used in their artists' colours: as that colour if they clearly have one, as no colour (None) if they have
several, or none of GenEval's. The others are too close to a tint for either."""
RENDER = """
const {Resvg} = require('@resvg/resvg-js');
const icons = JSON.parse(require('fs').readFileSync(0));
const fitTo = {mode: 'width', value: 512};
const render = s => Buffer.from(new Resvg(s, {fitTo}).render().asPng()).toString('base64');
console.log(JSON.stringify(icons.map(render)));
"""


def svg(package: dict, name: str) -> str:
    """The icon `name` of an Iconify package as an SVG document."""
    icons, parents = package["icons"], package.get("aliases", {})
    icon = icons.get(name) or icons[parents[name]["parent"]]
    width = icon.get("width", package.get("width", 16))
    height = icon.get("height", package.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'
    )


def _visible(alpha: int) -> int:
    return 255 if alpha > 24 else 0


def fit(image: Image.Image, side: int = TILE) -> np.ndarray:
    """The icon cropped to what is visible, scaled to the tile less one pixel a side, and centred."""
    image = image.crop(image.getchannel("A").point(_visible).getbbox())
    scale = (side - 2) / max(image.size)
    size = [max(2, 2 * round(length * scale / 2)) for length in image.size]
    small = image.convert("RGBa").resize((size[0], size[1]), Image.Resampling.LANCZOS).convert("RGBA")
    tile = Image.new("RGBA", (side, side))
    tile.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(tile)


def draw(folder: Path, icons: Mapping[str, str], names: Sequence[str], side: int = TILE) -> list[np.ndarray]:
    """The tiles of the named icons, one style after the other."""
    packages = {s: json.loads((folder / p / "icons.json").read_text()) for s, p in PACKAGES.items()}
    documents = [svg(packages[style], icons.get(name, name)) for style in STYLES for name in names]
    done = subprocess.run(
        ["node", "-e", RENDER],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return [fit(Image.open(io.BytesIO(base64.b64decode(png))), side) for png in json.loads(done.stdout)]


def main(folder: Path) -> None:
    out = Path(__file__).parents[1] / "src/ddit/world"
    tiles = draw(folder, ICONS, CLASSES)
    rows = [
        np.concatenate(tiles[r * len(CLASSES) : (r + 1) * len(CLASSES)], axis=1) for r in range(len(STYLES))
    ]
    Image.fromarray(np.concatenate(rows)).save(out / "atlas.png", optimize=True)
    index = {"tile": TILE, "styles": STYLES, "classes": CLASSES, "natural": NATURAL}
    (out / "atlas.json").write_text(json.dumps(index) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
