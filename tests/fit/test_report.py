"""The report of a fit from end to end on tiny models: its files, its model card, its warnings."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.cli import load_command
from ddit.config.data import FoldersData, JsonData, QuestionsData, SourceConfig
from ddit.eval.items import Figure
from ddit.fit.card import commands
from ddit.fit.drawing import Drawn, _copies, _Views
from ddit.fit.held_out import Clock, Trained, read_asked, read_captioned, read_trained
from ddit.fit.plan import Findings, FitPlan, Outcome, SourceFindings
from ddit.fit.report import Report, choose_samples, class_captions, find_warnings, write_report
from ddit.fit.run import redo_report
from ddit.fit.section import Section
from ddit.schema import to_data

LONG = Clock(1e9)
OUTCOME = Outcome(seconds={"data": 2.0, "final": 90.0}, steps={"final": 40}, chosen="final", chosen_step=30)


def fill(folder: Path, count: int = 80) -> Path:
    """Class folders of dogs (red) and cats (blue)."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name, channel = (("dog", 0), ("cat", 2))[number % 2]
        pixels = rng.integers(0, 80, (24, 40, 3))
        pixels[..., channel] += 150
        path = folder / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


def folders(photos: Path, part: str) -> FoldersData:
    templates = ("a photo of the {name}", "{name}")
    source = FoldersData(
        str(photos), templates=templates, question_templates=("what is there",), held_out_share=0.5
    )
    return replace(source, part=part)


def plan_for(out: Path, train: SourceConfig, held_out: SourceConfig) -> FitPlan:
    return FitPlan(
        out=str(out), preset="xs", image_size=32, num_views=1, hours=0.1, report_seconds=3.0, device="2 cores",
        flops=1e11, seed=0, train=(train,), held_out=(held_out,), runs=(), stages=(), warnings=("It is a toy.",),
    )  # fmt: skip


FINDINGS = Findings(
    sources=(SourceFindings("some/photos", "images", 80, 80, classes={"cat": 12, "dog": 68}, num_images=80),),
    num_images=80,
    num_held_out_images=40,
)


@pytest.fixture(scope="module")
def made(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, FitPlan]:
    out = tmp_path_factory.mktemp("out")
    plan = plan_for(out, folders(photos, "train"), folders(photos, "held_out"))
    return write_report(out, model, plan, FINDINGS, OUTCOME), out, plan


def test_every_figure_is_in_the_report(made: tuple[Report, Path, FitPlan]) -> None:
    report, out, _ = made
    values = json.loads((out / "report.json").read_text())
    assert list(values["figures"]) == ["answers", "captions", "classes", "drawn", "frechet", "copies"]
    for section in values["figures"].values():
        for figure in section["figures"]:
            assert figure["num"] > 0
            low, high = figure["interval"] or (figure["value"], figure["value"])
            assert low <= figure["value"] <= high
    drawn = {one["name"]: one for one in values["figures"]["drawn"]["figures"]}
    assert drawn["classifier on held-out images"]["value"] > 0.9  # red and blue
    distance = values["figures"]["frechet"]["figures"][0]
    assert distance["value"] > distance["baselines"]["two halves of real images"]  # the model draws noise
    assert values["warnings"][0] == "It is a toy."
    assert len(report.lines()) > 8


def test_the_images_are_there_and_those_of_the_data_are_not_in_the_model(
    made: tuple[Report, Path, FitPlan], model: Path
) -> None:
    _, out, _ = made
    for path in (model / "samples.png", out / "answers.png", out / "nearest.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100
    assert not (model / "nearest.png").exists()
    assert not (model / "report.json").exists()


def test_the_card_has_a_header_figures_and_commands_that_parse(
    made: tuple[Report, Path, FitPlan], model: Path
) -> None:
    card = (model / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    keys = yaml.safe_load(header)
    assert keys["library_name"] == "ddit"
    assert keys["pipeline_tag"] == "any-to-any"
    assert keys["license"] == "other"
    shell = re.search(r"```bash\n(.*?)```", body, re.DOTALL)
    assert shell is not None
    lines = shell[1].strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        _, verb, *arguments = shlex.split(line)
        context = load_command(verb).make_context(verb, arguments)
        assert context.params.get("model") == str(model)
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert "some/" not in body  # no path of the user's
    for words in ("## Mind", "Fréchet distance", "| final | 40 | 1.5 |", "cat 12"):
        assert words in body


def test_questions_alone_are_reported_without_generated_images(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("questions.json", "annotations.json")]
    images = sorted((photos / "dog").iterdir())
    asked = [
        {"question_id": i, "image_id": int(path.stem), "question": "what is there, Bello"}
        for i, path in enumerate(images)
    ]
    answered = [{"question_id": i, "answers": [{"answer": "dog"}] * 10} for i in range(len(images))]
    files[0].write_text(json.dumps({"questions": asked}))
    files[1].write_text(json.dumps({"annotations": answered}))
    source = QuestionsData(
        str(files[0]), str(files[1]), images=str(photos / "dog"), image_pattern="{image_id}.png"
    )
    report = write_report(tmp_path, model, plan_for(tmp_path, source, source), Findings(()), OUTCOME)
    found = {section.key: section for section in report.sections}
    assert found["answers"].figures[0].num == len(images)
    assert "ten references" in found["answers"].lines[0]
    assert found["answers"].lines[-1].startswith("1 of the questions hold words that no training text has")
    assert not found["drawn"].figures
    assert "ddit generate" not in (model / "README.md").read_text()


def test_captions_of_one_image_are_its_references(photos: Path, tmp_path: Path) -> None:
    names = sorted(photos.rglob("*.png"))[:3]
    entries = [{"image_path": str(names[i // 2]), "caption": f"text {i}"} for i in range(6)]
    (tmp_path / "c.json").write_text(json.dumps(entries))
    shown = read_captioned((JsonData(str(tmp_path / "c.json"), caption_key="caption"),), 32, 10, LONG)
    assert sorted(one.captions for one in shown) == [
        ("text 0", "text 1"),
        ("text 2", "text 3"),
        ("text 4", "text 5"),
    ]
    assert shown[0].image.size == (32, 32)


def test_class_folders_give_questions_captions_labels_and_training_images(photos: Path) -> None:
    held_out, train = folders(photos, "held_out"), folders(photos, "train")
    asked = read_asked((held_out,), 32, 1000, LONG)
    shown = read_captioned((held_out,), 32, 1000, LONG)
    trained = read_trained((train,), 32, 16, 1000, LONG)
    assert len(asked) == len(shown)
    assert len(shown) + len(trained.pixels) == 80
    assert {(one.question, one.short) for one in asked} == {("what is there", True)}
    assert {(one.label, one.captions[0].split()[-1]) for one in shown} == {("dog", "dog"), ("cat", "cat")}
    assert trained.pixels.shape[1:] == (3, 16, 16)
    reds = trained.pixels[:, 0].float().mean((1, 2)) > trained.pixels[:, 2].float().mean((1, 2))
    assert [label == "dog" for label in trained.labels] == reds.tolist()
    plan = plan_for(photos, train, held_out)
    assert class_captions(plan) == {"cat": "a photo of the cat", "dog": "a photo of the dog"}


def test_copies_of_training_images_are_found_and_new_images_are_not() -> None:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).float()
        return torch.nn.functional.interpolate(coarse, size=32).to(torch.uint8)

    known, fresh, held_out = images(200), images(60), images(100)
    trained = Trained(known, [""] * 200, [None] * 200)
    for drawn, low, high in ((known[:60] // 10 * 10, 0.95, 1.0), (fresh, 0.0, 0.2)):
        views = _Views(drawn, fresh, fresh, fresh, held_out)
        section, pairs = _copies(views, trained)
        assert low <= section.figures[0].value <= high
        assert section.figures[0].baselines["held-out images"] == pytest.approx(0.05, abs=0.011)
        assert len(pairs) == 8
        said = " ".join(find_warnings([section]))
        assert ("reproduces" in said) == (low > 0.5)


def test_figures_no_better_than_the_commonest_answer_are_warned_of() -> None:
    answers = Section("answers", "Answers", (Figure("accuracy", 0.6, 50, {"by first two words": 0.55}),))
    (found,) = find_warnings([answers])
    assert "0.600 is not above" in found
    better = Section("answers", "Answers", (Figure("accuracy", 0.6, 5000, {"by first two words": 0.55}),))
    assert find_warnings([better]) == []


def test_the_grid_shows_every_label_and_prompt_before_any_again() -> None:
    images = [Image.new("RGB", (8, 8))] * 6
    drawn = Drawn(images, ["a", "a", "a", "b", "b", "c"], ["x", "x", "x", "y", "y", "y"])
    assert choose_samples(drawn, 3) == [0, 3, 5]
    assert sorted(choose_samples(drawn, 99)) == list(range(6))


def test_the_commands_quote_what_the_shell_would_split() -> None:
    line = commands(Path("my model"), "a 'red' car", None)[0]
    assert shlex.split(line)[2:5] == ["a 'red' car", "--model", "my model"]


def test_a_finished_fit_can_be_measured_again(photos: Path, model: Path, tmp_path: Path) -> None:
    plan = plan_for(Path("where/it/was"), folders(photos, "train"), folders(photos, "held_out"))
    (tmp_path / "model").symlink_to(model)
    said: list[str] = []
    with pytest.raises(ValueError, match="holds no finished fit"):
        redo_report(tmp_path, said.append)
    fit = {"request": {}, "plan": to_data(plan), "findings": to_data(FINDINGS)}
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    (tmp_path / "progress.json").write_text(json.dumps({"outcome": to_data(OUTCOME)}))
    assert redo_report(tmp_path, said.append, minutes=0.05) == tmp_path / "model"
    assert json.loads((tmp_path / "report.json").read_text())["plan"]["report_seconds"] == pytest.approx(3)
    assert any("Answers: accuracy" in line for line in said)
