import json
from pathlib import Path

import numpy as np
from PIL import Image

from ddit.data.wide_files import write_wide_world
from ddit.world.wide import WIDE_PRESETS, make_scene, render, score_description


def test_scenes_are_written_with_their_texts_and_the_same_twice(tmp_path: Path) -> None:
    config = WIDE_PRESETS["wide-128"]
    paths = [write_wide_world(tmp_path / name, config, "test", 5, seed=2) for name in "ab"]
    assert paths[0].read_text() == paths[1].read_text()
    for index, line in enumerate(map(json.loads, paths[0].read_text().splitlines())):
        scene = make_scene(config, "test", index, seed=2)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / line["image"])), render(scene))
        assert score_description(scene, line["description"]).attributes == 1
        assert len(line["prompts"]) == 3
        assert len(line["questions"]) > 8
        assert 2 <= len(line["conversation"]) <= 6
