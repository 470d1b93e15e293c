"""The world's evaluation sets: their questions have the answers that the scenes give, and training sees none of it."""

import ast
import json
import random
from collections import Counter
from pathlib import Path

import pytest

import ddit
from ddit.config.data import WorldData
from ddit.config.runs import DualRun
from ddit.eval.captioning import read_captions
from ddit.eval.geneval import read_prompts
from ddit.eval.vqa import read_gqa, read_vizwiz, read_vqav2
from ddit.eval.world_tasks import WorldSplit, choose_absent, count_classes, read_world, write_eval_data
from ddit.eval.yesno import COARSE, POPE_FILES, read_mme, read_pope
from ddit.recipes import build, list_recipes
from ddit.world import PRESETS, SPLITS, caption_is_right, is_held_out, make_scene, render

WORLD = WorldSplit(PRESETS["fixed"], "test", num=40, num_prompts=3, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval-data")
    write_eval_data(path, WORLD)
    return path


def names_in(index: int) -> set[str]:
    return {group.class_name for group in WORLD.scene(index).groups}


def test_the_folder_says_which_scenes_it_shows(folder: Path) -> None:
    assert read_world(folder) == WORLD
    assert read_world(folder / "caption") == WORLD
    assert read_world(folder.parent) is None


def test_every_task_is_read_back_with_its_images(folder: Path) -> None:
    vqa, vizwiz, gqa = (
        read(folder / name).items
        for read, name in ((read_vqav2, "vqav2"), (read_vizwiz, "vizwiz"), (read_gqa, "gqa"))
    )
    assert (len(vqa), len(vizwiz)) == (80, 40)
    assert all(item.truth["answers"] == [item.truth["answer"]] * 10 for item in (*vqa, *vizwiz))
    assert {item.truth["kind"] for item in vqa} == {"yes/no", "number", "other"}
    assert 0 < sum(not item.truth["answerable"] for item in vizwiz) < 20
    assert {"color", "count", "exists", "relation", "what", "where", "exists_color", "exists_count"} == {
        item.truth["detailed"] for item in gqa
    }
    assert {item.image.parent for item in (*vqa, *vizwiz, *gqa)} == {folder / "images"}
    assert len(read_prompts(folder / "geneval" / "evaluation_metadata.jsonl")) == 18


def test_captions_come_with_their_scene_and_are_right(folder: Path) -> None:
    items = read_captions(folder / "caption").items
    assert len(items) == 40
    for item in items:
        assert item.scene is not None
        assert item.scene == WORLD.scene(int(item.id))
        assert all(caption_is_right(item.scene, text, complete=True) for text in item.truth["references"])


def test_pope_asks_for_what_is_there_as_often_as_for_what_is_not(folder: Path) -> None:
    items = read_pope(folder / "pope").items
    assert Counter(item.truth["answer"] for item in items)["yes"] == len(items) / 2
    for item in items:
        asked = str(item.question).removesuffix("?").split(maxsplit=3)[-1]
        assert (asked in names_in(int(item.image.stem))) == (item.truth["answer"] == "yes")
    asked_for = {
        kind: {
            (i.image.stem, i.question) for i in items if (i.truth["kind"], i.truth["answer"]) == (kind, "yes")
        }
        for kind in POPE_FILES
    }
    assert asked_for["random"] == asked_for["popular"] == asked_for["adversarial"]


def test_popular_and_adversarial_follow_the_training_split() -> None:
    counts = count_classes(WORLD.config)
    scene = WORLD.scene(0)
    present = {group.class_name for group in scene.groups}
    absent = [name for name in scene.config.classes if name not in present]
    popular = choose_absent(scene, "popular", 3, random.Random(0))
    assert [counts.single[n] for n in popular] == sorted((counts.single[n] for n in absent), reverse=True)[:3]
    together = {name: sum(counts.together[name, other] for other in present) for name in absent}
    adversarial = choose_absent(scene, "adversarial", 3, random.Random(0))
    assert [together[n] for n in adversarial] == sorted(together.values(), reverse=True)[:3]
    # what training never shows together is never a likely companion
    assert all(not counts.together[a, b] for a, b in counts.together if is_held_out(a, b))


def test_mme_has_a_yes_and_a_no_for_each_image(folder: Path) -> None:
    items = read_mme(folder / "mme").items
    assert {item.truth["kind"] for item in items} == set(COARSE)
    for first, second in zip(items[::2], items[1::2], strict=True):
        assert first.image == second.image
        assert (first.truth["answer"], second.truth["answer"]) == ("yes", "no")
        assert first.question != second.question


def test_a_split_and_a_seed_are_the_same_data_every_time(folder: Path, tmp_path: Path) -> None:
    write_eval_data(tmp_path, WORLD)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    other = tmp_path / "other"
    write_eval_data(other, WorldSplit(WORLD.config, "test", num=40, num_prompts=3, seed=2), ["gqa"])
    assert json.loads((other / "gqa" / "questions.json").read_text()) != json.loads(
        (folder / "gqa" / "questions.json").read_text()
    )


# --- no evaluation scene can occur in training ---


@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_shows_its_split_whatever_seed_and_index(preset: str) -> None:
    """The blue of a scene's lower background, modulo the number of splits, is its split's place."""
    for place, split in enumerate(SPLITS):
        for seed in (0, 1, 17):
            for index in (*range(25), 10**6, 2**40):
                scene = make_scene(PRESETS[preset], split, index, seed=seed)
                assert scene.background[1][2] % len(SPLITS) == place


def test_the_mark_reaches_the_pixels() -> None:
    for split in SPLITS:
        for index in range(10):
            scene = make_scene(PRESETS["fixed"], split, index)
            lowest = render(scene)[-1, :, 2]
            value, _ = Counter(lowest.tolist()).most_common(1)[0]
            assert value % len(SPLITS) == SPLITS.index(split)


def worlds_of(value: object) -> list[WorldData]:
    """Every source of scenes inside a configuration."""
    if isinstance(value, WorldData):
        return [value]
    if isinstance(value, tuple | list):
        return [found for part in value for found in worlds_of(part)]
    fields = getattr(value, "__dataclass_fields__", {})
    return [found for name in fields for found in worlds_of(getattr(value, name))]


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("mini")])
@pytest.mark.parametrize("world", PRESETS)
def test_recipes_train_on_the_training_split_and_are_watched_on_val(name: str, world: str) -> None:
    config = build(name, "runs", world=world)
    held_out = config.data.held_out if isinstance(config, DualRun) else getattr(config, "held_out", ())
    watched = worlds_of(held_out)
    assert {source.split for source in watched} <= {"val"}
    trained = [source for source in worlds_of(config) if source not in watched]
    assert {source.split for source in trained} <= {"train"}
    assert trained or not isinstance(config, DualRun)


def test_the_training_code_names_no_evaluation_split() -> None:
    """The stages before the model take scenes of splits that the code names, not the configuration."""
    package = Path(ddit.__file__).parent
    files = [file for folder in ("config", "recipes", "train") for file in (package / folder).rglob("*.py")]
    named = {
        node.value
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert named & set(SPLITS) == {"train", "val"}
    assert WorldData().split == "train"
