"""`ddit rank`: lines and JSON, the likeliest first, options that reach the scores; and `ddit generate --best-of`."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from PIL import Image

from ddit.pipeline import Pipeline

TEXTS = ["a cat", "a red dog", "blue"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_texts_come_sorted_with_their_shares_and_errors(run: Run, model: Path, image: Path) -> None:
    code, out, _ = run("rank", image, *TEXTS, "--model", model)
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    (choice,) = Pipeline.from_pretrained(model).choose(Image.open(image), TEXTS)
    order = sorted(range(3), key=lambda row: -choice.probabilities[row])
    assert lines == [
        [f"{choice.probabilities[row]:.3f}", f"{choice.scores[row].log_prob:.2f} ± 0.00", TEXTS[row]]
        for row in order
    ]


def test_json_has_everything_and_the_options_reach_the_scores(run: Run, model: Path, image: Path) -> None:
    options = (
        "--question",
        "what color?",
        "--null-weight",
        0.5,
        "--num-samples",
        4,
        "--seed",
        3,
        "--length",
        5,
    )
    code, out, _ = run("rank", image, *TEXTS, *options, "--per-token", "--json", "-m", model)
    assert code == 0
    lines = {line["text"]: line for line in map(json.loads, out.splitlines())}
    (choice,) = Pipeline.from_pretrained(model).choose(
        Image.open(image), TEXTS, questions="what color?", per_token=True, null_weight=0.5, num_samples=4, seed=3,
        length=5,
    )  # fmt: skip
    for text, probability, score in zip(TEXTS, choice.probabilities, choice.scores, strict=True):
        assert lines[text] == {
            "image": str(image),
            "question": "what color?",
            "text": text,
            "probability": pytest.approx(probability, abs=1e-5),
            "log_prob": pytest.approx(score.log_prob, abs=1e-4),
            "standard_error": pytest.approx(score.standard_error, abs=1e-4),
            "num_tokens": score.num_tokens,
        }
    shares = [json.loads(line)["probability"] for line in out.splitlines()]
    assert shares == sorted(shares, reverse=True)


def test_a_text_that_does_not_fit_is_one_line(run: Run, model: Path, image: Path) -> None:
    code, out, err = run("rank", image, "a cat " * 9, "--model", model)
    assert (code, out) == (1, "")
    assert "ddit: the text has 18 tokens and only 10 fit" in err
    assert "Traceback" not in err


def test_generate_keeps_the_best_of_several(run: Run, model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("three.png", "one.png")]
    for path, best_of in zip(paths, (3, 1), strict=True):
        code, _, _ = run(
            "generate", "a cat", "--best-of", best_of, "--seed", 1, "--upscale", 1, "-o", path, "-m", model
        )
        assert code == 0
    pipeline = Pipeline.from_pretrained(model)
    for path, best_of in zip(paths, (3, 1), strict=True):
        expected = pipeline.generate("a cat", seed=1, best_of=best_of)[0]
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(expected, int)).max() <= 1
