"""The wide world as evaluation sets: the truth scores 1 in every section, and what is false does not."""

import json
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.eval.evaluate import EvalData, evaluate
from ddit.eval.geneval import WideJudge, read_prompts, tally_sections
from ddit.eval.options import WIDE_TASKS, EvalOptions
from ddit.eval.report import Summary
from ddit.eval.wide_world import (
    READING,
    WORDINGS,
    WideSplit,
    is_right,
    make_questions,
    make_wide_prompts,
    read_descriptions,
    read_reading,
    score_descriptions,
    score_reading,
    write_wide_data,
)
from ddit.pipeline import Pipeline
from ddit.world import Prompt
from ddit.world.wide import WIDE_PRESETS, WIDE_TAGS, make_scene
from ddit.world.wide.official import BENCHMARKS, make_official_question
from ddit.world.wide.scenes import draw_ground
from ddit.world.wide.sprites import make_sprite

WIDE = WIDE_PRESETS["wide"]
WORLD = WideSplit(WIDE, num=30, num_prompts=3, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide")
    counts = write_wide_data(path, WORLD)
    assert counts == {"reading": 300, "description": 90, "geneval": 3 * (11 + 11 + 8 + 6)}
    return path


def test_the_right_answers_are_right_in_every_section_and_empty_ones_wrong(folder: Path) -> None:
    items = read_reading(folder / "reading").items
    right = score_reading(items, [item.truth["answer"] for item in items])
    wrong = score_reading(items, [""] * len(items))
    names = [section.name for section in READING]
    assert [(f.name, f.value, f.num) for f in right.figures[:10]] == [(name, 1.0, 30) for name in names]
    assert [f.value for f in wrong.figures] == [0.0] * len(wrong.figures)
    assert sum(f.num for f in right.figures if f.name.startswith("held-out wordings: ")) == 30
    assert right.scores == [1.0] * 300


def test_images_show_what_their_section_says(folder: Path) -> None:
    items = read_reading(folder / "reading").items
    for item in items:
        section = item.truth["section"]
        with Image.open(item.image) as image:
            image.load()
        assert image.size == (64, 64)
        assert image.mode == ("RGBA" if section == "alone on transparent" else "RGB")
        if section == "alone on transparent":
            assert not item.truth["kind"].startswith("ground")
            assert np.asarray(image)[0, :, 3].mean() < 128
        elif section in ("alone on white", "alone on black"):
            assert abs(np.median(np.asarray(image)[[0, -1]]) - 255 * section.endswith("white")) < 10


def test_sections_have_the_wordings_and_pairs_that_they_are_named_for() -> None:
    for section in READING:
        asked = list(islice(make_questions(WORLD, section), 20))
        assert asked == list(islice(make_questions(WORLD, section), 20))
        assert {a.scene.split for a in asked} == {"heldout" if section.name == "held-out pairs" else "test"}
        assert all(len(a.scene.objects) == 1 for a in asked if section.alone)
    wordings = {s.name: {a.question for a in islice(make_questions(WORLD, s), 200)} for s in WORDINGS}
    assert not wordings["seen wordings"] & wordings["held-out wordings"]


def test_an_answer_may_have_digits_articles_and_another_order() -> None:
    assert is_right("two", "2")
    assert is_right("cat, dog", "dog, cat")
    assert is_right("dog", "A dog.")
    assert not is_right("dog", "unanswerable")
    assert not is_right("cat, dog", "dog")


def test_official_sentences_are_the_benchmarks_own() -> None:
    forms = {
        "pope": r"Is there an? [a-z ]+ in the image\?\nAnswer the question using a single word or phrase\.",
        "mme": r"(Is|Are) there? ?[a-z ]+(in (this|the) image)?\? Please answer yes or no\.",
        "vqav2": r"[A-Z][^?\n]+\?\nAnswer the question using a single word or phrase\.",
        "gqa": r"[A-Z][^?\n]+\?\nAnswer the question using a single word or phrase\.",
    }
    for benchmark in BENCHMARKS:
        asked = [
            make_official_question(make_scene(WIDE, "test", i), random.Random(i), benchmark)
            for i in range(150)
        ]
        texts = [a.text for a in asked if a is not None]
        assert len(texts) > 60
        for text in texts:
            assert re.fullmatch(forms[benchmark], text) or (
                benchmark == "mme" and text.startswith("Is the ")
            ), text
    with pytest.raises(ValueError, match="vizwiz"):
        make_official_question(make_scene(WIDE, "test", 0), random.Random(0), "vizwiz")


def test_right_descriptions_score_one_and_those_of_other_scenes_less(folder: Path) -> None:
    items = read_descriptions(folder / "description").items
    texts = [item.truth["answer"] for item in items]
    right = score_descriptions(items, texts).figures
    wrong = score_descriptions(items, [*texts[1:], texts[0]]).figures
    assert [f.name for f in right[:3]] == [
        f"seen wordings: {name}" for name in ("objects named", "attributes right", "statements false")
    ]
    assert [f.value for f in right] == [1.0, 1.0, 0.0] * 3
    for objects, _, false in zip(*[iter(wrong)] * 3, strict=True):
        assert objects.value < 0.4
        assert false.value > 0.3


def test_prompts_come_back_with_their_sections_and_are_tallied_by_them(folder: Path) -> None:
    prompts = read_prompts(folder / "geneval" / "evaluation_metadata.jsonl")
    assert prompts == make_wide_prompts(WORLD)
    sections, tags = [p.section for p in prompts], [p.tag for p in prompts]
    figures = tally_sections(sections, tags, [tag != "negation" for tag in tags])
    seen = [f for f in figures if f.name.startswith("seen wordings: ")]
    assert [f.name.split(": ")[1] for f in seen] == ["overall", *WIDE_TAGS]
    assert seen[0].value == 1  # GenEval's six alone
    assert {f.value for f in figures if f.name.endswith("negation")} == {0}
    assert len([f for f in figures if f.name.startswith("fixed places")]) == 7


def draw_prompt(prompt: Prompt, rng: random.Random) -> Image.Image:
    """An image that shows what is asked for, composed of sprites."""
    colors = {clause.get("color") for clause in prompt.include}
    while (ground := make_scene(WIDE, "test", rng.randrange(1000)).ground).kind in colors:
        pass
    canvas = Image.fromarray(draw_ground(ground, 64))
    spots = [(2, 2), (34, 2), (2, 34), (34, 34)]
    rng.shuffle(spots)
    away = {"left of": (34, 18), "right of": (2, 18), "above": (18, 34), "below": (18, 2)}
    near = {"left of": (2, 18), "right of": (34, 18), "above": (18, 2), "below": (18, 34)}
    last = prompt.include[-1]
    for clause in prompt.include:
        for _ in range(clause["count"]):
            spot = spots.pop()
            if "position" in last:
                spot = (near if clause is last else away)[last["position"][0]]
            color = clause.get("color", rng.choice(("red", "green", "blue", "brown")))
            sprite = make_sprite(clause["class"], rng.choice(WIDE.styles), color, 26)
            canvas.paste(sprite, spot, sprite)
    return canvas


def test_true_images_are_right_and_those_of_other_prompts_are_not() -> None:
    prompts = [p for p in make_wide_prompts(WORLD) if p.section == "seen wordings"]
    images = [draw_prompt(p, random.Random(i)) for i, p in enumerate(prompts)]
    right = [score.correct for score in WideJudge().score(prompts, images)]
    wrong = [score.correct for score in WideJudge().score(prompts, [*images[7:], *images[:7]])]
    assert np.mean(right) > 0.93
    assert np.mean(wrong) < 0.15


def test_a_model_that_tells_the_truth_has_every_figure_at_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WideSplit(WIDE, num=3, num_prompts=1)
    write_wide_data(tmp_path / "data", world)
    paths = tmp_path.glob("data/*/*s.jsonl")
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    truth = {(entry["image"], entry["question"]): entry["answer"] for entry in lines}
    lengths: set[tuple[bool, int | None]] = set()

    def answer(self: Pipeline, images: list[Path], questions: list[str], **options: Any) -> list[str]:
        names = ["/".join(path.parts[-2:]) for path in images]
        texts = [truth[pair] for pair in zip(names, questions, strict=True)]
        lengths.add((len(texts[0].split()) > 20, options.get("length")))
        return texts

    def generate(self: Pipeline, prompts: list[str], **_: Any) -> list[Image.Image]:
        asked = {p.text: p for p in make_wide_prompts(world)}
        return [draw_prompt(asked[text], random.Random(text)) for text in prompts]

    monkeypatch.setattr(Pipeline, "answer", answer)
    monkeypatch.setattr(Pipeline, "generate", generate)
    options = EvalOptions(num_samples=1)
    made: list[Summary] = list(
        evaluate(tiny_pipeline(), WIDE_TASKS, EvalData(None, world), tmp_path / "out", options=options)
    )
    assert [summary.task for summary in made] == list(WIDE_TASKS)
    geneval, reading, description = (summary.figures for summary in made)
    assert {f.value for f in reading} == {1.0}
    assert {f.value for f in description if "false" not in f.name} == {1.0}
    assert lengths == {(False, None), (True, tiny_pipeline().settings.text_length)}
    assert np.mean([f.value for f in geneval if f.name.endswith("overall")]) > 0.9
    assert json.loads((tmp_path / "out/reading/summary.json").read_text())["world"]["split"] == "test"


def test_a_task_of_the_other_world_is_named_as_such() -> None:
    with pytest.raises(
        ValueError, match=r"unknown task 'pope': use geneval, .* \(the small world has .*pope"
    ):
        EvalData(None, WORLD).check(["pope"])
