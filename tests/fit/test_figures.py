"""The figures of a fit's report, each against a case that is worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from ddit.eval.classifier import NUM_FEATURES, train_classifier, untrained
from ddit.eval.frechet import frechet_distance, nearness
from ddit.eval.intervals import wilson
from ddit.fit.held_out import Asked, Captioned, Clock
from ddit.fit.labels import find_labels, label_in
from ddit.fit.reading import answer_questions, answer_score, caption_images, rank_classes
from ddit.pipeline import Pipeline
from ddit.prompts import MINI, PUBLISHED

LONG = Clock(1e9)
SHOWN = Image.new("RGB", (8, 8))


def gaussian(mean: Sequence[float], root: Sequence[Sequence[float]], count: int = 200) -> torch.Tensor:
    """Features whose mean and covariance (root rootᵀ) are exactly these."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    noise = noise - noise.mean(0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / (count - 1))).T
    return white @ torch.tensor(root, dtype=torch.float64).T + torch.tensor(mean, dtype=torch.float64)


# --- distances ---


def test_frechet_of_gaussians_of_one_axis_is_the_closed_form() -> None:
    first = gaussian([0.0, 1.0, 2.0], [[1, 0, 0], [0, 2, 0], [0, 0, 3]])
    second = gaussian([1.0, 1.0, 0.0], [[2, 0, 0], [0, 2, 0], [0, 0, 0.5]])
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 0 + 2.5**2, abs=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_of_turned_gaussians_is_the_closed_form() -> None:
    """In two dimensions tr (S1 S2)^½ = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)) by Cayley and Hamilton."""
    roots = torch.tensor([[[2.0, 0], [1, 1]], [[1.0, 0.5], [0, 3]]], dtype=torch.float64)
    one, other = roots @ roots.mT
    product = one @ other
    root_trace = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = 0.25 + float(one.trace() + other.trace()) - 2 * root_trace
    found = frechet_distance(gaussian([0.5, 0], roots[0].tolist()), gaussian([0, 0], roots[1].tolist()))
    assert found == pytest.approx(expected, abs=1e-9)


def test_frechet_holds_with_fewer_images_than_dimensions() -> None:
    first = torch.zeros(2, 50)
    first[0, 0], first[1, 0] = 1.0, -1.0  # variance 2 on one axis
    second = torch.zeros(3, 50)
    second[0, 1], second[1, 1] = 3.0, -3.0  # variance 9 on another
    assert frechet_distance(first, second) == pytest.approx(2 + 9)
    with pytest.raises(ValueError, match="two images"):
        frechet_distance(first[:1], second)


def test_nearness_is_that_of_the_nearest_over_those_around() -> None:
    trained = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]])
    ratios, nearest = nearness(torch.tensor([[0.0, 0.0], [0.0, 5.0], [6.0, 8.0]]), trained)
    assert nearest.tolist() == [0, 1, 1]
    assert ratios[0] == pytest.approx(0, abs=1e-3)  # a copy
    assert ratios[1] == pytest.approx(10**0.5 / ((5 + 10**0.5 + 5) / 3), abs=1e-4)
    assert ratios[2] == pytest.approx(5 / ((10 + 5 + 40**0.5) / 3), abs=1e-4)


# --- the classifier ---


def colours(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy red, green and blue images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    pixels = torch.randint(0, 90, (count, 3, 16, 16), generator=generator)
    pixels[torch.arange(count), labels] += 120
    return pixels.to(torch.uint8), labels


def test_the_classifier_learns_what_can_be_told_apart() -> None:
    pixels, labels = colours(256, 0)
    found = train_classifier(pixels, labels, 3, seconds=2.0, max_epochs=20, flip=True)
    shown, truths = colours(100, 1)
    assert (found.predict(shown) == truths).float().mean() > 0.97
    assert found.features(shown).shape == (100, NUM_FEATURES)
    assert found.num_images == 256
    assert 8 < found.num_steps <= 40


def test_the_space_without_labels_is_always_the_same() -> None:
    pixels, _ = colours(8, 2)
    state = torch.random.get_rng_state()
    same = [untrained(16, seed=seed).features(pixels) for seed in (0, 0, 1)]
    assert torch.equal(same[0], same[1])
    assert not torch.allclose(same[0], same[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="two images and classes"):
        train_classifier(colours(4, 0)[0], torch.zeros(4), 1, seconds=1)


# --- labels ---


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A photo of a DOG.", "dog"),
        ("a hot dog stand", "hot dog"),
        ("a dog and a hot dog", None),
        ("a dogma", None),
        ("ein Bild von 🐶", "🐶"),
    ],
)
def test_a_label_is_a_whole_word_and_the_longest(caption: str, label: str | None) -> None:
    assert label_in(caption, ["dog", "hot dog", "🐶"]) == label


def test_labels_of_captions_are_words_that_part_them() -> None:
    names = ["red", "green", "blue"]
    captions = [f"a photo of a {names[i % 3]} {'car' if i % 30 else 'car and a cat'}" for i in range(300)]
    assert find_labels(captions) == sorted(names)
    assert find_labels([f"picture {i}" for i in range(300)]) == []
    assert find_labels([]) == []


# --- what is read ---


class Says:
    """Stands in for a pipeline that says what it is told to."""

    def __init__(self, texts: Sequence[str], style: Any = MINI) -> None:
        self.texts, self.style = list(texts), style
        self.asked: list[str] = []

    def answer(self, images: Sequence[Any], questions: Sequence[str], **options: Any) -> list[str]:
        self.asked += questions
        return [self.texts.pop(0) for _ in questions]

    def caption(self, images: Sequence[Any], **options: Any) -> list[str]:
        return [self.texts.pop(0) for _ in images]

    def choose(self, images: Sequence[Any], candidates: Sequence[str], **options: Any) -> list[Any]:
        return [SimpleNamespace(index=candidates.index(self.texts.pop(0))) for _ in images]


def says(*texts: str, style: Any = MINI) -> Pipeline:
    return cast(Pipeline, Says(texts, style))


def test_answers_are_counted_by_first_words_beside_the_majority() -> None:
    asked = [Asked(SHOWN, f"What color is {i}?", ("red" if i < 9 else "blue",)) for i in range(12)]
    asked += [Asked(SHOWN, f"Is there a {i}?", ("yes",)) for i in range(8)]
    given = ["Red."] * 6 + ["blue"] * 6 + ["the yes"] * 7 + ["no"]
    found = answer_questions(says(*given), asked, LONG)
    whole, *others = found.section.figures
    assert whole.value == (6 + 3 + 7) / 20
    assert whole.interval == wilson(16 / 20, 20)
    assert whole.baselines == {"majority baseline": 9 / 20, "by first two words": 17 / 20}
    assert [(one.name, one.value, one.num) for one in others] == [
        ("other questions", 7 / 8, 8),
        ("what color ...", 9 / 12, 12),
    ]
    assert len(found.answers) == len(found.asked) == 20


def test_ten_answers_are_scored_by_the_rule_of_vqav2_and_few_by_exact_match() -> None:
    ten = ["two"] * 3 + ["three"] * 7
    assert answer_score("2", ten) == pytest.approx(0.9)
    assert answer_score("2", ten[2:5]) == 1
    assert answer_score("four", ten[2:5]) == 0
    assert answer_score("A", ["the"]) == 0  # both are nothing after the normalisation
    assert answer_score("a ", ["A"]) == 1


def test_a_short_answer_is_asked_for_as_in_training() -> None:
    pipeline = Says(["x", "x", "x"], PUBLISHED)
    asked = [Asked(SHOWN, "q?", ("x",), short > 0, short > 1) for short in range(3)]
    answer_questions(cast(Pipeline, pipeline), asked, LONG)
    assert pipeline.asked == [
        "q?",
        f"q? {PUBLISHED.short_answer_suffix}",
        f"q? {PUBLISHED.short_answer_suffix} {PUBLISHED.unanswerable_suffix}",
    ]


def test_time_that_is_up_still_leaves_one_batch() -> None:
    asked = [Asked(SHOWN, "is it?", ("yes",))] * 200
    found = answer_questions(says(*["yes"] * 200), asked, replace(LONG, seconds=-1.0))
    assert found.section.figures[0].num == 64


def test_captions_of_class_folders_are_right_by_their_class() -> None:
    shown = [Captioned(SHOWN, ("a photo of a dog", "dog"), "dog")] * 3
    shown += [Captioned(SHOWN, ("a photo of a cat", "cat"), "cat")]
    found = caption_images(
        says("a dog", "a photo of a dog", "a cat", "a cat and a dog"), shown, ["dog", "cat"], LONG
    )
    right, score = found.figures
    assert (right.value, right.num, right.baselines) == (0.5, 4, {"commonest class": 0.75})
    assert score.name == "CIDEr"
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]


def test_reading_accuracy_is_that_of_the_likeliest_caption() -> None:
    texts = {"dog": "a photo of a dog", "cat": "a photo of a cat"}
    shown = [Captioned(SHOWN, ("dog",), "dog"), Captioned(SHOWN, ("cat",), "cat")]
    found = rank_classes(says(texts["dog"], texts["dog"]), shown, texts, LONG)
    assert found is not None
    assert (found.figures[0].value, found.figures[0].num) == (0.5, 2)
    assert rank_classes(says(), shown, {}, LONG) is None
    many = rank_classes(says(), shown, {**texts, **{f"c{i}": f"c{i}" for i in range(60)}}, LONG)
    assert many is not None
    assert not many.figures
