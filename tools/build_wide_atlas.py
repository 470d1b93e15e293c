"""Build src/ddit/world/wide/atlas.webp and atlas.json from the packages that tools/build_atlas.py names.

python tools/build_wide_atlas.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
from build_atlas import ICONS, NATURAL, draw
from PIL import Image

from ddit.world.presets import STYLES
from ddit.world.wide.presets import WIDE_CLASSES

TILE, COLUMNS = 128, 16
WIDE_ICONS = ICONS | {
    "cell phone": "mobile-phone", "couch": "couch-and-lamp", "person": "person-standing",
    "potted plant": "potted-plant", "sports ball": "soccer-ball", "stop sign": "stop-sign", "suitcase": "luggage",
    "teddy bear": "teddy-bear", "traffic light": "vertical-traffic-light", "truck": "delivery-truck",
    "tv": "television", "vase": "amphora", "wine glass": "wine-glass",
}  # fmt: skip
SEVERAL = {
    "noto": "bed cow kite laptop motorcycle person scissors truck tv wine-glass sports-ball",
    "twemoji": "bed cow laptop person potted-plant scissors sports-ball wine-glass",
    "fluent": "bicycle cow kite laptop motorcycle person scissors truck tv wine-glass",
}
"""Sprites of no single colour, beside those of `build_atlas.NATURAL`; the spaces of their names are hyphens here."""
ONE = {
    "noto": "backpack=red bear=brown broccoli=green couch=blue stop-sign=red suitcase=blue teddy-bear=brown",
    "twemoji": "backpack=red broccoli=green kite=blue stop-sign=red suitcase=blue vase=brown",
    "fluent": "backpack=red bear=brown broccoli=green couch=blue stop-sign=red suitcase=blue "
    "traffic-light=black vase=brown",
}
"""Sprites that clearly have one of GenEval's colours."""


def natural(style: str) -> dict[str, str | None]:
    several = {name.replace("-", " "): None for name in SEVERAL[style].split()}
    one = dict(pair.replace("-", " ").split("=") for pair in ONE[style].split())
    return {**NATURAL[style], **several, **one}


def main(folder: Path) -> None:
    out = Path(__file__).parents[1] / "src/ddit/world/wide"
    tiles = draw(folder, WIDE_ICONS, WIDE_CLASSES, TILE)
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(out / "atlas.webp", lossless=True, method=6)
    about = {"tile": TILE, "columns": COLUMNS, "styles": STYLES, "classes": WIDE_CLASSES}
    index = {**about, "natural": {style: natural(style) for style in STYLES}}
    (out / "atlas.json").write_text(json.dumps(index) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
