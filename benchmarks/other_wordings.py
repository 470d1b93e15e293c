"""Answers and images for wordings that were written without sight of the wide world's grammar.

    python -m benchmarks.other_wordings [--model mini] [--num 5]

Twelve wordings of each of 19 kinds of questions and 5 kinds of prompts, other_wordings.json, each with `--num` scenes
of the preset `wide-easy` and its test split, where they fit any: no two of its objects differ enough for "bigger". They
are for measuring alone: no training text and no choice of a setting may come from them. The project wrote them, as it
wrote the patterns of the training data, so other people's may be farther off; how many of them the patterns can make
is counted. Writes other_wordings.md.
"""

import argparse
import json
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ddit.eval.geneval import score_images
from ddit.eval.intervals import wilson
from ddit.eval.report import code_version
from ddit.eval.wide_world import is_right
from ddit.pipeline import Pipeline
from ddit.world.geneval import Prompt
from ddit.world.wide import (
    WIDE_PRESETS,
    WideScene,
    caption_is_right,
    list_wordings,
    make_prompts,
    make_scene,
    render,
    score_description,
)
from ddit.world.wide.checked import detect_checked
from ddit.world.wide.finders import FINDERS
from ddit.world.wide.wordings import list_patterns, paraphrase
from ddit.world.wide.words import enumerate_words, noun, phrase

HERE = Path(__file__).parent
WORLD = "wide-easy"
TAGS = {
    "single": "colors", "count": "counting", "several": "two_object", "relation": "position", "binding": "binding",
}  # fmt: skip
"""The category of GenEval whose prompts have what a form names."""
DETAILED = "describe_in_detail"
MOST_SCENES = 500


class Asked(NamedTuple):
    """A question about a scene; `answer` is None if it asks for a caption."""

    form: str
    wording: str
    text: str
    scene: WideScene
    answer: str | None


def ask(form: str, wordings: Sequence[str], num: int, first: int) -> Iterator[Asked]:
    """`num` questions in each wording, about the scenes that fit, from a place in the split on."""
    rng, scenes = random.Random(form), iter(range(first, first + MOST_SCENES))
    made = (make_scene(WIDE_PRESETS[WORLD], "test", index) for index in scenes)
    if form.startswith("describe"):
        found = ((scene, {}, None) for scene in made)
    else:
        facts = ((scene, FINDERS[form][0](scene, rng)) for scene in made)
        found = ((scene, fact.slots, fact.answer) for scene, fact in facts if fact is not None)
    for number, (scene, slots, answer) in enumerate(islice(found, num * len(wordings))):
        wording = wordings[number % len(wordings)]
        yield Asked(form, wording, wording.format_map(slots), scene, answer)


def request(form: str, wordings: Sequence[str], num: int) -> Iterator[Prompt]:
    prompts = [p for p in make_prompts(WIDE_PRESETS[WORLD], num * len(wordings)) if p.tag == TAGS[form]]
    for number, prompt in enumerate(prompts):
        yield replace(prompt, text=wordings[number % len(wordings)].format_map(slots_of(prompt)), tag=form)


def slots_of(prompt: Prompt) -> dict[str, str]:
    """What a prompt names, for other words around it."""
    groups = prompt.include[::-1]
    phrases = [phrase(g["class"], g.get("color"), count=g["count"]) for g in groups]
    slots = {"a": phrases[0], "b": phrases[-1], "list": enumerate_words(phrases)}
    for name, color, group in (("x", "color", groups[0]), ("y", "other", groups[-1])):
        slots |= {name: noun(group["class"]), f"an_{name}": phrase(group["class"])}
        slots |= {color: group.get("color") or ""}
    return slots | {"rel": next((g["position"][0] for g in groups if "position" in g), "")}


def known_wordings(file: str, forms: Mapping[str, Sequence[str]], tries: int = 2_000) -> set[str]:
    """Those that the grammar has, or that a pattern makes in as many tries."""
    rng, found = random.Random(0), set[str]()
    for form, wordings in forms.items():
        made = {plain(w.text) for w in list_wordings(file, form)}
        for pattern in list_patterns(file).get(form, ()):
            made |= {plain(paraphrase(pattern, rng)) for _ in range(tries)}
        found |= {wording for wording in wordings if plain(wording) in made}
    return found


def plain(wording: str) -> str:
    """In lower case, without marks and with one word for an image."""
    words = wording.lower().replace("{an_image}", "an image").replace("{image}", "image")
    words = words.replace("{color_word}", "color").replace("colour", "color")
    return re.sub(r"[^\w{}' ]", "", re.sub(r"\b(picture|photo|scene|pic)\b", "image", words)).strip()


class Score(NamedTuple):
    right: int = 0
    num: int = 0

    def row(self, name: str) -> str:
        low, high = wilson(self.right / self.num, self.num)
        return f"| {name} | {self.right / self.num:.3f} | {low:.3f} to {high:.3f} | {self.num} |"


def add(scores: Sequence[Score]) -> Score:
    return Score(sum(s.right for s in scores), sum(s.num for s in scores))


def score_text(one: Asked, text: str) -> Score:
    """Of a detailed description the attributes, of another text whether it is right."""
    if one.form == DETAILED:
        told = score_description(one.scene, text)
        return Score(told.right_attributes, told.num_attributes)
    if one.answer is None:
        return Score(int(caption_is_right(one.scene, text, complete=True)), 1)
    return Score(int(is_right(one.answer, text)), 1)


def read(pipeline: Pipeline, asked: Sequence[Asked]) -> list[Score]:
    options: dict[str, Any] = {"batch_size": 32}
    if asked[0].form == DETAILED:
        options |= {"length": pipeline.settings.text_length, **pipeline.settings.detailed_rule}
    images = [Image.fromarray(render(one.scene)) for one in asked]
    texts = pipeline.answer(images, [one.text for one in asked], **options)
    return [score_text(one, text) for one, text in zip(asked, texts, strict=True)]


def draw(pipeline: Pipeline, prompts: Sequence[Prompt]) -> Score:
    images = pipeline.generate([prompt.text for prompt in prompts], seed=0, batch_size=32)
    return add([Score(int(one.correct), 1) for one in score_images(prompts, images, detect_checked)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--num", type=int, default=5, help="scenes a wording")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    texts = json.loads((HERE / "other_wordings.json").read_text())
    pipeline = Pipeline.from_pretrained(args.model)
    known = known_wordings("questions.txt", texts["questions"])
    answered, drawn, new = dict[str, Score](), dict[str, Score](), list[Score]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of words that the model does not know: they are the point
        for place, (form, wordings) in enumerate(texts["questions"].items()):
            if asked := list(ask(form, wordings, args.num, MOST_SCENES * place)):
                scores = read(pipeline, asked)
                answered[form] = add(scores)
                if form != DETAILED:
                    pairs = zip(asked, scores, strict=True)
                    new += [own for one, own in pairs if one.wording not in known]
                print(answered[form].row(form), flush=True)
        for form, wordings in texts["prompts"].items():
            drawn[form] = draw(pipeline, list(request(form, wordings, args.num)))
            print(drawn[form].row(form), flush=True)
    asked_for = {wording for form in answered for wording in texts["questions"][form]}
    lines = [
        "# Wordings that were written without sight of the grammar",
        "",
        f"`python -m benchmarks.other_wordings --model {args.model} --num {args.num}`, {code_version()}. Scenes of the",
        f"preset `{WORLD}`, split test. Of the {len(asked_for)} wordings of questions {len(known & asked_for)} are the",
        "grammar's, or made by its patterns in 2,000 tries each, marks and words for an image aside. Intervals take",
        "the texts as independent.",
        "",
        "| asked for | right | 95 % interval | n |",
        "|---|---|---|---|",
        add([own for form, own in answered.items() if form != DETAILED]).row("**answers and captions**"),
        add(new).row("... in wordings that are not the grammar's"),
        *(own.row(form) for form, own in answered.items() if form != DETAILED),
        answered[DETAILED].row("detailed descriptions: attributes"),
        add(list(drawn.values())).row("**images**"),
        *(own.row(form) for form, own in drawn.items()),
    ]
    (args.out / "other_wordings.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
