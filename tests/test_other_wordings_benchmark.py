"""Wordings that were written without sight of the grammar: all can be asked, and what the grammar has is told apart."""

import json

from benchmarks.other_wordings import DETAILED, HERE, TAGS, Score, add, ask, known_wordings, request

TEXTS = json.loads((HERE / "other_wordings.json").read_text())


def test_every_wording_is_asked_about_a_scene_that_it_fits() -> None:
    for place, (form, wordings) in enumerate(TEXTS["questions"].items()):
        asked = list(ask(form, wordings, 2, 500 * place))
        assert not any("{" in one.text for one in asked)
        assert len(asked) == (0 if form == "bigger" else 2 * len(wordings))
        assert len({one.scene.index for one in asked}) == len(asked)
        assert all((one.answer is None) == form.startswith("describe") for one in asked)
        assert {one.wording for one in asked} <= set(wordings)
    assert DETAILED in TEXTS["questions"]


def test_prompts_say_what_their_images_must_show() -> None:
    assert set(TEXTS["prompts"]) == set(TAGS)
    for form, wordings in TEXTS["prompts"].items():
        prompts = list(request(form, wordings, 2))
        assert len(prompts) == 2 * len(wordings)
        for prompt in prompts:
            assert "{" not in prompt.text
            assert all(group.get("color", "") in prompt.text for group in prompt.include)
    one = next(iter(request("relation", ["{a} {rel} {b}"], 1)))
    first, second = (group["class"] for group in one.include[::-1])
    relation, other = one.include[1]["position"]
    assert other == 0
    assert one.text.index(first) < one.text.index(relation) < one.text.rindex(second)


def test_a_wording_of_the_grammar_is_known_whatever_its_marks() -> None:
    given = {"exists": ["IS THERE {an_x} IN THE PICTURE??", "do my eyes deceive me or is that {an_x}?"]}
    assert known_wordings("questions.txt", given, tries=50) == {given["exists"][0]}


def test_scores_add_up() -> None:
    assert add([Score(1, 1), Score(0, 1), Score(2, 2)]) == Score(3, 4)
    assert Score(3, 4).row("a") == "| a | 0.750 | 0.301 to 0.954 | 4 |"
