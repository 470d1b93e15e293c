"""lmms-eval's own command on tasks of the small world gives what `ddit eval` gives on the same files."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ddit import Pipeline

TASKS = Path(__file__).parents[2] / "examples" / "lmms_eval"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: docs/evaluation.md"
    ),
    pytest.mark.skipif(
        not entry_points(group="lmms_eval.models", name="ddit"),
        reason="ddit was installed before it had its entry point: install it again",
    ),
]


class Table(NamedTuple):
    """Figures and lines of each task: lmms-eval's, and of `ddit eval` by the same names."""

    figures: dict[str, float]
    samples: dict[str, list[dict[str, Any]]]
    ours: dict[str, list[dict[str, Any]]]
    summaries: dict[str, dict[str, Any]]
    images: Path


def run(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Both programs on the world's hardest scenes, POPE with its own sentence, which mini answers with many errors."""
    folder = tmp_path_factory.mktemp("lmms")
    run(folder, "ddit", "eval-data", "worldeval", "--num-scenes", "16", "--preset", "free")
    for path in (folder / "worldeval" / "pope").glob("*.json"):
        lines = [{**line, "text": line["text"].replace("?", " in the image?")} for line in json_lines(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(folder, "ddit", "eval", "pope", "vizwiz", "--data", "worldeval", "--out", "ours")
    tasks = "world_pope,world_pope_choice,world_rounds,world_vizwiz"
    run(
        folder, "lmms_eval", "eval", "--model", "ddit", "--model_args", "pretrained=mini,device=cpu", "--tasks", tasks,
        "--include_path", str(TASKS), "--batch_size", "7", "--output_path", "theirs", "--log_samples",
    )  # fmt: skip
    (results,) = (folder / "theirs").rglob("*_results.json")
    figures = {}
    for task, values in json.loads(results.read_text())["results"].items():
        figures[task] = next(value for name, value in values.items() if name in ("accuracy,none", "acc,none"))
    samples = {}
    for task in tasks.split(","):
        (path,) = (folder / "theirs").rglob(f"*_samples_{task}.jsonl")
        samples[task] = sorted(json_lines(path), key=lambda line: line["doc_id"])
    ours = {task: json_lines(folder / "ours" / task / "predictions.jsonl") for task in ("pope", "vizwiz")}
    summaries = {task: json.loads((folder / "ours" / task / "summary.json").read_text()) for task in ours}
    return Table(figures, samples, ours, summaries, folder / "worldeval" / "images")


def figure(summary: dict[str, Any], name: str) -> float:
    return next(one["value"] for one in summary["figures"] if one["name"] == name)


def said(samples: list[dict[str, Any]]) -> list[Any]:
    """The answer in each sample, or the answers of its rounds."""
    return [sample["filtered_resps"] for sample in samples]


def test_answers_and_accuracies_are_those_of_ddit_eval(table: Table) -> None:
    pope = [line for line in table.ours["pope"] if line["id"].startswith("adversarial")]
    assert said(table.samples["world_pope"]) == [line["prediction"] for line in pope]
    assert said(table.samples["world_vizwiz"]) == [line["prediction"] for line in table.ours["vizwiz"]]
    assert table.figures["world_pope"] == figure(table.summaries["pope"], "adversarial: accuracy")
    assert table.figures["world_vizwiz"] == pytest.approx(figure(table.summaries["vizwiz"], "accuracy"))
    assert 0 < table.figures["world_pope"] < 1


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_losses_are_our_bounds_and_the_least_is_chosen(table: Table) -> None:
    samples = table.samples["world_pope_choice"][:10]
    pipeline = Pipeline.from_pretrained("mini", device="cpu")
    images = [table.images / sample["input_media"][0] for sample in samples]
    for sample, image in zip(samples, images, strict=True):
        losses = [float(loss) for loss, _ in sample["filtered_resps"]]
        scores = pipeline.score(image, ["yes", "no"], questions=sample["input"])
        assert losses == pytest.approx([-score.log_prob for score in scores], abs=1e-3)
        chosen = pipeline.choose(image, ["yes", "no"], questions=sample["input"])[0]
        assert sample["acc"] == (chosen.text == sample["target"])
    assert {is_own for sample in samples for _, is_own in sample["filtered_resps"]} == {"True", "False"}


def test_rounds_ask_what_the_task_gives_for_each(table: Table) -> None:
    captions, answers = zip(*said(table.samples["world_rounds"]), strict=True)
    assert list(answers) == said(table.samples["world_pope"])
    pipeline = Pipeline.from_pretrained("mini", device="cpu")
    images = [table.images / sample["input_media"][0] for sample in table.samples["world_rounds"][:8]]
    assert list(captions[:8]) == pipeline.caption(images)
