"""Runs on a tiny random model: what is written, that ranks and batches change nothing, one line for each mistake."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_pipeline
from typer.testing import CliRunner, Result

import ddit
from ddit.cli import app
from ddit.eval import report
from ddit.eval.evaluate import EvalData, evaluate
from ddit.eval.options import TASKS, WIDE_TASKS, EvalOptions
from ddit.eval.report import model_hash
from ddit.eval.runner import TEXT_TASKS
from ddit.eval.world_tasks import WorldSplit, empty_background
from ddit.pipeline import Pipeline
from ddit.world import PRESETS

pytestmark = [
    pytest.mark.filterwarnings("ignore:the model does not know"),
    pytest.mark.filterwarnings("ignore:the text has"),  # more tokens than the tiny model reads
]

SMALL = ("--num-scenes", 8, "--num-prompts", 2, "--num-samples", 2, "--batch-size", 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def summary(out: Path, task: str) -> dict[str, Any]:
    return json.loads((out / task / "summary.json").read_text())


def predictions(out: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / task / "predictions.jsonl").read_text().splitlines()]


def figures(out: Path, task: str) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in summary(out, task)["figures"]}


def test_every_task_leaves_predictions_and_a_summary(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = done("eval", "--model", model, "--out", out, "--save-grids", "--seed", 3, *SMALL).stdout
    for task in TASKS:
        report, lines = summary(out, task), predictions(out, task)
        assert report["num_samples"] == len(lines) > 0
        assert report["settings"]["seed"] == 3
        assert report["decoding"]["num_steps"] == 3
        assert (report["model_hash"], report["num_ranks"]) == (model_hash(model), 1)
        assert report["world"]["split"] == "test"
        assert {"commit", "torch", "dtype", "device", "started", "seconds"} <= set(report)
        assert all(line["score"] >= 0 for line in lines)
        first = report["figures"][0]
        assert f"| {task} | {first['name']} | " in printed
    assert "guidance_scale 2.0, sampler euler, shift 3.0" in printed
    assert "seed 3" in printed
    assert sorted(p.name for p in out.iterdir()) == sorted(TASKS)
    folder = out / "geneval" / "00011"
    assert sorted(p.name for p in folder.iterdir()) == ["grid.png", "metadata.jsonl", "samples"]
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
    share = sum(line["score"] for line in predictions(out, "gqa")) / len(predictions(out, "gqa"))
    assert figures(out, "gqa")["accuracy"] == pytest.approx(share)


def test_exported_data_give_what_the_world_gives(model: Path, tmp_path: Path) -> None:
    """--data on an exported folder is the same as no --data, for one task's folder too."""
    done("eval-data", tmp_path / "data", "--num-scenes", 8, "--num-prompts", 2)
    run = ("eval", "vizwiz", "caption", "--model", model, "--num-scenes", 8, "--out")
    done(*run, tmp_path / "a")
    done(*run, tmp_path / "b", "--data", tmp_path / "data")
    done("eval", "vizwiz", "--model", model, "--out", tmp_path / "c", "--data", tmp_path / "data" / "vizwiz")
    assert predictions(tmp_path / "a", "vizwiz") == predictions(tmp_path / "b", "vizwiz")
    assert predictions(tmp_path / "a", "vizwiz") == predictions(tmp_path / "c", "vizwiz")
    assert figures(tmp_path / "a", "caption") == figures(tmp_path / "b", "caption")
    assert "every attribute" in figures(tmp_path / "b", "caption")
    assert summary(tmp_path / "b", "caption")["data"] == str(tmp_path / "data")


def test_batches_change_nothing(model: Path, tmp_path: Path) -> None:
    for size in (1, 4):
        out = tmp_path / str(size)
        done(
            "eval",
            "gqa",
            "geneval",
            "--model",
            model,
            "--limit",
            6,
            "--out",
            out,
            *SMALL[:-2],
            "--batch-size",
            size,
        )
    assert predictions(tmp_path / "1", "gqa") == predictions(tmp_path / "4", "gqa")
    assert figures(tmp_path / "1", "geneval") == pytest.approx(figures(tmp_path / "4", "geneval"), rel=1e-3)
    images = [
        [np.asarray(Image.open(path)).astype(int) for path in sorted((tmp_path / size).rglob("*.png"))]
        for size in ("1", "4")
    ]
    assert len(images[0]) == 12
    for one, four in zip(*images, strict=True):
        assert abs(one - four).max() <= 1
    assert all(abs(a - b).max() > 1 for a, b in pairwise(images[0]))  # each from a seed of its own


def test_the_table_has_n_an_interval_and_the_baselines(model: Path, tmp_path: Path) -> None:
    printed = done("eval", "gqa", "caption", "--model", model, "--out", tmp_path, *SMALL).stdout
    head = next(line for line in printed.splitlines() if line.startswith("| task"))
    assert head == (
        "| task | figure | value | 95 % interval | n | majority baseline | by first two words | empty background |"
    )
    figure, cider = summary(tmp_path, "gqa")["figures"][0], summary(tmp_path, "caption")["figures"][1]
    low, high = figure["interval"]
    assert 0 <= low <= figure["value"] <= high <= 1
    assert list(figure["baselines"]) == ["majority", "first_two_words", "empty_background"]
    shares = " | ".join(f"{value:.3f}" for value in figure["baselines"].values())
    row = f"| gqa | accuracy | {figure['value']:.3f} | {low:.3f} to {high:.3f} | {figure['num']} | {shares} |"
    assert row in printed.splitlines()
    assert (cider["name"], cider["interval"], cider["baselines"]) == ("CIDEr", None, {})


def test_the_empty_background_baseline_asks_about_the_scenes_without_their_objects(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that says "yes" of a scene with objects and "no" of one without."""
    empty = WorldSplit(PRESETS["fixed"])
    backgrounds = {empty_background(empty.scene(index)).tobytes() for index in range(8)}
    shown = []

    def answer(self: Pipeline, images: list[Any], questions: list[str], **_: object) -> list[str]:
        pixels = [image if isinstance(image, Image.Image) else Image.open(image) for image in images]
        is_empty = [image.tobytes() in backgrounds for image in pixels]
        shown.extend(zip(questions, is_empty, strict=True))
        return ["no" if empty else "yes" for empty in is_empty]

    monkeypatch.setattr(Pipeline, "answer", answer)
    done("eval", "gqa", "--model", model, "--out", tmp_path, *SMALL)
    asked, about_empty = (sorted(q for q, e in shown if e == empty) for empty in (False, True))
    assert asked == about_empty
    truths = [line["answer"] for line in predictions(tmp_path, "gqa")]
    figure = summary(tmp_path, "gqa")["figures"][0]
    assert figure["value"] == pytest.approx(truths.count("yes") / len(truths))
    assert figure["baselines"]["empty_background"] == pytest.approx(truths.count("no") / len(truths))


def test_data_sets_without_scenes_have_no_empty_background(model: Path, tmp_path: Path) -> None:
    data = pope_data(tmp_path / "data", ["good.png"] * 2)
    done("eval", "pope", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert all(figure["baselines"] == {} for figure in summary(tmp_path / "out", "pope")["figures"])


def test_a_task_announces_as_many_samples_as_it_makes(model: Path, tmp_path: Path) -> None:
    world = WorldSplit(PRESETS["fixed"], num=4, num_prompts=1)
    announced: dict[str, int] = {}
    tasks = ("geneval", "gqa", "caption")
    made: dict[str, int] = dict.fromkeys(tasks, 0)

    def start_task(task: str, num_samples: int) -> Callable[[int], None]:
        announced[task] = num_samples

        def advance(count: int) -> None:
            made[task] += count

        return advance

    run = evaluate(
        Pipeline.from_pretrained(str(model)),
        tasks,
        EvalData(None, world),
        tmp_path,
        options=EvalOptions(num_samples=1, batch_size=3),
        start_task=start_task,
    )
    assert [each.task for each in run] == list(tasks)
    assert made == announced


def test_a_limit_spreads_over_the_categories_and_keeps_pairs(model: Path, tmp_path: Path) -> None:
    done("eval", "geneval", "mme", "--model", model, "--limit", 6, "--out", tmp_path, *SMALL)
    generated = predictions(tmp_path, "geneval")
    assert len(generated) == 12
    assert len({line["tag"] for line in generated}) == 6
    asked = [line["id"].rpartition("/") for line in predictions(tmp_path, "mme")]
    assert [number for _, _, number in asked] == ["0", "1"] * 3
    assert [name for name, _, _ in asked[::2]] == [name for name, _, _ in asked[1::2]]


def test_decoding_is_the_models_unless_it_is_given(model: Path, tmp_path: Path) -> None:
    options = ("--text-steps", 2, "--order", "confidence", "--temperature", 0, "--guidance-scale", 1.5,
               "--top-p", 0.9, "--block-size", 4, "--text-guidance-scale", 1.5, "--image-refresh", 2,
               "--sampler", "dpm", "--guidance-interval", 0.2, 0.9)  # fmt: skip
    done("eval", "caption", "--model", model, "--limit", 2, "--out", tmp_path, *SMALL, *options)
    assert summary(tmp_path, "caption")["decoding"] == {
        "num_steps": 3, "guidance_scale": 1.5, "shift": 3.0, "sampler": "dpm", "guidance_interval": [0.2, 0.9],
        "guidance_rescale": 0.0, "shift_by_size": False, "prompt_length": 10, "answer_steps": 2, "caption_steps": 2,
        "answer_length": None, "caption_length": None, "text_length": 12, "size": 32,
        "order": "confidence", "temperature": 0.0, "top_p": 0.9, "threshold": 0.9, "entropy_bound": 0.1,
        "commit_above": 1.0, "block_size": 4, "text_guidance_scale": 1.5, "image_refresh": 2, "text_refresh": 1,
        "detailed_entropy_bound": None,
        "detailed_block_size": None,
        "edit_above": 1.0,
    }  # fmt: skip


BEYOND = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {
        "tag": "colors",
        "include": [{"class": "dog", "count": 1, "color": "mauve"}],
        "prompt": "a photo of a mauve dog",
    },
]


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in BEYOND))
    return path


def test_of_the_official_prompts_those_within_the_world_are_scored(
    model: Path, tmp_path: Path, prompt_file: Path
) -> None:
    out = tmp_path / "out"
    printed = done("eval", "geneval", "--model", model, "--metadata", prompt_file, "--out", out).stdout
    note = (
        "geneval: 1 of 3 prompts are used; 2 name what the small world lacks (bench, mauve) and are left out"
    )
    assert note in printed
    assert [line["prompt"] for line in predictions(out, "geneval")] == ["a photo of a dog"] * 4
    assert [(f["name"], f["num"]) for f in summary(out, "geneval")["figures"]] == [
        ("overall", 4),
        ("single_object", 4),
        ("single objects: PSNR, dB", 4),
        ("single objects: perceptual distance", 4),
    ]


def test_all_prompts_have_images_for_the_official_script(
    model: Path, tmp_path: Path, prompt_file: Path
) -> None:
    out = tmp_path / "out"
    run = ("eval", "geneval", "--model", model, "--metadata", prompt_file, "--out", out, "--all-prompts")
    printed = done(*run).stdout
    assert "1 of 3 prompts are scored here" in printed
    assert f"evaluation/evaluate_images.py {out / 'geneval'}" in printed
    lines = predictions(out, "geneval")
    assert ["score" in line for line in lines] == [False] * 4 + [True] * 4 + [False] * 4
    assert [figure["num"] for figure in summary(out, "geneval")["figures"]] == [4] * 4
    for number, entry in enumerate(BEYOND):
        folder = out / f"geneval/{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == entry
        assert len(list((folder / "samples").iterdir())) == 4


def test_prompts_that_are_all_beyond_the_world_are_refused_before_a_model_is_run(
    model: Path, tmp_path: Path, prompt_file: Path
) -> None:
    prompt_file.write_text(json.dumps(BEYOND[0]))
    run = ("eval", "geneval", "--model", model, "--metadata", prompt_file, "--out", tmp_path / "out")
    result = call(*run)
    assert isinstance(result.exception, ValueError)
    assert "no prompt can be scored here, 1 name what the small world lacks (bench); --all-prompts" in str(
        result.exception
    )
    assert not (tmp_path / "out" / "geneval").exists()
    done(*run, "--all-prompts")
    assert summary(tmp_path / "out", "geneval")["figures"] == []


def test_json_is_one_summary_a_line(model: Path, tmp_path: Path) -> None:
    printed = done(
        "eval", "pope", "gqa", "--model", model, "--limit", 2, "--out", tmp_path, "--json", *SMALL
    ).stdout
    assert [json.loads(line) for line in printed.splitlines()] == [
        summary(tmp_path, t) for t in ("pope", "gqa")
    ]


# --- mistakes, and what a failed run leaves ---


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("beauty",), "unknown task 'beauty': use geneval, vqav2, "),
        (("gqa", "--data", "nowhere"), "no such folder: 'nowhere'"),
        (("gqa", "--world", "mars"), "unknown preset 'mars'"),
        (("gqa", "--split", "half"), "unknown split 'half'"),
        (("geneval", "--metadata", "none.jsonl"), "no such file: 'none.jsonl'"),
        (
            ("gqa", "--order", "backwards"),
            "order must be random, confidence, margin, threshold or entropy, got 'backwards'",
        ),
    ],
)
def test_a_mistake_gets_one_line(model: Path, tmp_path: Path, arguments: tuple[str, ...], fault: str) -> None:
    result = call("eval", *arguments, "--model", model, "--out", tmp_path / "out")
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(fault)
    assert "\n" not in str(result.exception)


def test_a_folder_that_is_no_runs_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "mine.txt").write_text("keep")
    result = call("eval", "gqa", "--model", model, "--limit", 1, "--out", tmp_path, *SMALL)
    assert "is left alone" in str(result.exception)
    assert (tmp_path / "gqa" / "mine.txt").read_text() == "keep"


def test_a_run_replaces_an_earlier_one_and_a_failed_one_leaves_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("eval", "gqa", "--model", model, "--out", tmp_path, *SMALL)
    done(*run, "--limit", 2)
    done(*run, "--limit", 3)
    before = (tmp_path / "gqa" / "summary.json").read_bytes()
    assert len(predictions(tmp_path, "gqa")) == 3

    def fail(*_: object, **__: object) -> list[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Pipeline, "answer", fail)
    assert call(*run).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gqa"]
    assert (tmp_path / "gqa" / "summary.json").read_bytes() == before


# --- images and questions that cannot be used ---


def pope_data(folder: Path, images: list[str], texts: list[str] | None = None) -> Path:
    """POPE's three files over these images, yes and no in turn; the image "good.png" is there."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(folder / "good.png")
    lines = [
        {
            "question_id": i,
            "image": image,
            "text": (texts or ["is there a dog?"] * len(images))[i],
            "label": label,
        }
        for i, (image, label) in enumerate(zip(images, ["yes", "no"] * len(images), strict=False))
    ]
    for kind in ("random", "popular", "adversarial"):
        (folder / f"pope_{kind}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


BAD = ["good.png", "good.png", "cut.png", "gone.png", "good.png", "good.png"]
ODD_NAMES = ["good.png", "x" * 300, "half\ud83d.png", "a\0b.png", ""]


def bad_data(folder: Path) -> Path:
    data = pope_data(folder, BAD, ["is there a dog?"] * 5 + ["half \ud83d?"])
    (data / "cut.png").write_bytes((data / "good.png").read_bytes()[:60])
    return data


def test_an_image_that_cannot_be_read_counts_as_wrong_and_is_named(model: Path, tmp_path: Path) -> None:
    bad, good = bad_data(tmp_path / "bad"), pope_data(tmp_path / "good", ["good.png"] * 6)
    run = ("eval", "pope", "--model", model, "--batch-size", 4)
    printed = done(*run, "--data", bad, "--out", tmp_path / "a").stdout
    done(*run, "--data", good, "--out", tmp_path / "b")
    report, lines = summary(tmp_path / "a", "pope"), predictions(tmp_path / "a", "pope")
    assert (report["num_samples"], report["num_corrupt"]) == (18, 9)
    named = report["corrupt"]
    assert list(named)[:3] == ["random/2", "random/3", "random/5"]
    assert "cut.png' is a broken image" in named["random/2"]
    assert "no such image" in named["random/3"]
    assert "half of a pair of surrogates" in named["random/5"]
    assert "| pope | corrupt, counted as wrong | 9 |  | 18 |" in printed
    assert "pope: 9 of 18 samples cannot be read and count as wrong: random/2: " in printed
    assert "all of them are in summary.json" in printed
    corrupt = [line for line in lines if "corrupt" in line]
    assert len(corrupt) == 9
    assert all((line["score"], line["prediction"]) == (0, "") for line in corrupt)
    # the others are asked with the same seeds as if nothing were wrong
    sound = [line["prediction"] for line in predictions(tmp_path / "b", "pope")]
    assert all(line["prediction"] == sound[i] for i, line in enumerate(lines) if "corrupt" not in line)
    assert summary(tmp_path / "b", "pope")["num_corrupt"] == 0


def test_if_no_image_is_there_the_folder_is_at_fault(model: Path, tmp_path: Path) -> None:
    data = pope_data(tmp_path / "data", ["a.png", "b.png"])
    result = call("eval", "pope", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert str(result.exception).startswith("no image a.png in ")
    assert "--images" in str(result.exception)
    assert not (tmp_path / "out" / "pope").exists()


def test_a_mistake_in_the_options_is_not_taken_for_a_corrupt_image(model: Path, tmp_path: Path) -> None:
    data = pope_data(tmp_path / "data", ["good.png"])
    result = call("eval", "pope", "--model", model, "--data", data, "--size", 33, "--out", tmp_path / "out")
    assert isinstance(result.exception, ValueError)
    assert "33" in str(result.exception)


def test_a_name_that_no_file_can_have_counts_as_wrong(model: Path, tmp_path: Path) -> None:
    data = pope_data(tmp_path / "data", ODD_NAMES)
    done("eval", "pope", "--model", model, "--data", data, "--out", tmp_path / "out")
    corrupt = summary(tmp_path / "out", "pope")["corrupt"]
    assert len(corrupt) == 3 * 4
    assert "ile name too long" in corrupt["random/1"]
    assert "half of a pair of surrogates" in corrupt["random/2"]
    assert "is a folder, not an image" in corrupt["random/4"]


@pytest.mark.slow
def test_two_processes_count_the_same_corrupt_images(model: Path, tmp_path: Path) -> None:
    data = bad_data(tmp_path / "bad")
    done("eval", "pope", "--model", model, "--data", data, "--out", tmp_path / "one")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ddit")
    command = [
        sys.executable,
        *launcher,
        "eval",
        "pope",
        "--model",
        model,
        "--data",
        data,
        "--out",
        tmp_path / "two",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert "| pope | corrupt, counted as wrong | 9 |  | 18 |" in said
    one, two = summary(tmp_path / "one", "pope"), summary(tmp_path / "two", "pope")
    assert one["figures"] == two["figures"]
    assert one["corrupt"] == two["corrupt"]
    assert predictions(tmp_path / "one", "pope") == predictions(tmp_path / "two", "pope")


def test_by_what_other_rule_is_said_below_the_table(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (32, 32)).save(data / "000000000001.png")
    ids = {"question_id": 1, "image_id": 1}
    (data / "questions.json").write_text(json.dumps({"questions": [{**ids, "question": "what?"}]}))
    (data / "annotations.json").write_text(
        json.dumps({"annotations": [{**ids, "answers": [{"answer": "a dog"}]}]})
    )
    lines = {
        "images": [{"id": 1, "file_name": "000000000001.png"}],
        "annotations": [{"image_id": 1, "caption": "a"}],
    }
    (data / "captions.json").write_text(json.dumps(lines))
    printed = done(
        "eval", "vqav2", "caption", "--model", model, "--data", data, "--out", tmp_path / "out"
    ).stdout
    table, _, below = printed.partition("\n\nvqav2: ")
    assert "| caption | CIDEr | 0.000 |" in table
    assert below.startswith("1 of 1 questions have fewer than ten answers and are scored by exact match")
    assert "\ncaption: CIDEr is 0 here whatever the captions say" in below
    assert "exact match" in summary(tmp_path / "out", "vqav2")["notes"][0]
    assert len(summary(tmp_path / "out", "caption")["notes"]) == 1


def test_predictions_are_split_into_lines_by_any_program(tmp_path: Path) -> None:
    lines = [{"question": "a\u2028b\x85c\u2029d\ud800e\u00e9"}, {"question": "f"}]
    report.write_report(tmp_path, report.Summary("pope", [], 2, 0.0), lines)
    text = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 2
    assert "\u00e9" in text
    assert [json.loads(line) for line in text.splitlines()] == lines


# --- who made it ---


def test_the_models_hash_follows_its_weights(tmp_path: Path) -> None:
    import torch

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    before = model_hash(tmp_path)
    (tmp_path / "note.txt").write_text("not weights")
    assert model_hash(tmp_path) == before
    data = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).digest()
    assert before == hashlib.sha256(b"model.safetensors\0" + data).hexdigest()
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert model_hash(tmp_path) != before


def test_the_code_is_named_by_its_own_commit_or_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "ddit"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(report.ddit, "__file__", str(package / "__init__.py"))
    assert report.code_version() == ddit.__version__  # no checkout

    def git(*arguments: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *named, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert report.code_version() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True")
    assert report.code_version() == git("rev-parse", "HEAD") + "+changes"
    installed = tmp_path / "lib" / "ddit"  # in someone else's repository
    installed.mkdir(parents=True)
    monkeypatch.setattr(report.ddit, "__file__", str(installed / "__init__.py"))
    assert report.code_version() == ddit.__version__


def test_every_task_of_the_options_can_be_run() -> None:
    assert {"geneval", *TEXT_TASKS} == {*TASKS, *WIDE_TASKS}


# --- ranks ---


@pytest.mark.slow
def test_two_processes_give_what_one_gives(model: Path, tmp_path: Path) -> None:
    def run(out: str, *launcher: str) -> None:
        arguments = (
            "eval",
            "geneval",
            "gqa",
            "mme",
            "--model",
            model,
            "--limit",
            9,
            "--out",
            tmp_path / out,
            *SMALL,
        )
        command = [sys.executable, *launcher, "-m", "ddit", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    run("one")
    run("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for task in ("geneval", "gqa", "mme"):
        one, two = summary(tmp_path / "one", task), summary(tmp_path / "two", task)
        assert one["figures"] == two["figures"]
        assert predictions(tmp_path / "one", task) == predictions(tmp_path / "two", task)
        assert (one["num_ranks"], two["num_ranks"]) == (1, 2)
    images = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png")]
    assert len(images) == 18
    for path in images:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@pytest.mark.slow
def test_a_quick_look_at_the_shipped_model(tmp_path: Path) -> None:
    done("eval", "--limit", 12, "--out", tmp_path)
    assert figures(tmp_path, "geneval")["single_object"] >= 0.5
    assert figures(tmp_path, "gqa")["accuracy"] > 0.5
    assert figures(tmp_path, "caption")["CIDEr"] > 1
