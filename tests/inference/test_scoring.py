"""Scores of texts about images: exact enumeration, what is shared, options, mistakes in one line."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.diffusion.masked import subs_log_probs
from ddit.inference.scoring import Choice, Score
from ddit.pipeline import Pipeline

TEXTS = ["a cat", "a photo of the red dog", "blue", "two car"]


@pytest.fixture(scope="module", params=[True, False], ids=["joint", "isolated"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return tiny_pipeline(image_attends_text=request.param)


def noise_images(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def log_probs(scores: list[Score]) -> list[float]:
    return [score.log_prob for score in scores]


def by_orders(pipeline: Pipeline, image: Image.Image | None, before: str, text: str) -> float:
    """The mean log-likelihood over all orders of revealing a text's tokens and its end, by plain forwards."""
    codec = pipeline.text_codec
    prompt, ids = codec.token_ids(before), codec.token_ids(text)
    begin, end = len(prompt), len(prompt) + len(ids)
    length = pipeline.settings.text_length
    row = torch.tensor([*prompt, *ids, *[codec.eos_token_id] * (length - end)])
    units = [[place] for place in range(begin, end)] + [list(range(end, length))]
    latents = None
    if image is not None:
        encoded = pipeline.encode_image(image)
        latents = encoded.latents

    def revealed(order: tuple[list[int], ...]) -> float:
        noisy, total = row.clone(), 0.0
        noisy[begin:] = codec.mask_token_id
        for unit in order:
            is_masked = torch.zeros(1, length, dtype=torch.bool)
            is_masked[0, unit[0]] = True
            out = pipeline.transformer(
                latents, torch.zeros(1), codec.states(noisy[None]), num_t2i=0, logit_mask=is_masked
            )
            total += subs_log_probs(out.logits, codec.mask_token_id)[0, row[unit[0]]].item()
            noisy[unit] = row[unit]
        return total

    with torch.inference_mode():
        orders = list(itertools.permutations(units))
        return sum(map(revealed, orders)) / len(orders)


# --- what a score is ---


def test_a_short_text_has_its_mean_over_all_orders_of_revealing_and_no_error(pipeline: Pipeline) -> None:
    image = noise_images(1)[0]
    score = pipeline.score(image, "a cat")[0]
    assert score.log_prob == pytest.approx(by_orders(pipeline, image, "A:", "a cat"), abs=1e-4)
    assert (score.standard_error, score.num_tokens) == (0, 3)
    assert score.per_token == score.log_prob / 3
    answer = pipeline.score(image, "red", questions="is there the dog?")[0]
    expected = by_orders(pipeline, image, "Q: is there the dog? A:", "red")
    assert answer.log_prob == pytest.approx(expected, abs=1e-4)
    blind = pipeline.score(None, "a cat")[0]
    assert blind.log_prob == pytest.approx(by_orders(pipeline, None, "A:", "a cat"), abs=1e-4)


def test_one_word_has_the_probability_that_the_model_answers_it_with() -> None:
    """With the answer's end given away, what is left is the softmax over all words."""
    pipeline, image = tiny_pipeline(), noise_images(1)[0]
    words = [word for word in pipeline.text_codec.tokenizer.get_vocab() if word.startswith("▁")]
    total = sum(math.exp(pipeline.score(image, word[1:])[0].log_prob) for word in words)
    assert 0 < total <= 1 + 1e-6


def test_a_long_text_is_estimated_with_an_error_that_tells_how_far_it_is_off() -> None:
    pipeline, image = tiny_pipeline(), noise_images(1)[0]
    text = "a photo of the red dog"
    exact = pipeline.score(image, text, num_samples=127)[0]
    assert exact.standard_error == 0
    off = []
    for seed in range(12):
        found = pipeline.score(image, text, num_samples=24, seed=seed)[0]
        assert found.standard_error > 0
        off.append((found.log_prob - exact.log_prob) / found.standard_error)
    assert np.std(off) == pytest.approx(1, abs=0.6)
    assert abs(np.mean(off)) < 1


def test_the_null_images_part_is_that_of_a_score_without_an_image(pipeline: Pipeline) -> None:
    image = noise_images(1)
    plain, blind = pipeline.score(image, TEXTS), pipeline.score(None, TEXTS)
    corrected = pipeline.score(image, TEXTS, null_weight=0.7)
    expected = [a - 0.7 * b for a, b in zip(log_probs(plain), log_probs(blind), strict=True)]
    assert log_probs(corrected) == pytest.approx(expected, abs=1e-4)
    same = pipeline.score(None, TEXTS, null_weight=0.7)
    assert log_probs(same) == pytest.approx(log_probs(blind), abs=1e-4)


# --- batches, and what is shared ---


def test_a_batch_of_scores_is_the_single_calls(pipeline: Pipeline) -> None:
    images = [noise_images(3)[i] for i in (0, 1, 0, 2)]
    options = {"null_weight": 0.5, "num_samples": 12, "seed": 3}
    for asked in (None, ["is there a cat?", "what color?", "is the dog red?", "how many"]):
        batch = pipeline.score(images, TEXTS, questions=asked, batch_size=7, **options)
        for row, score in enumerate(batch):
            question = None if asked is None else asked[row]
            alone = pipeline.score(images[row], TEXTS[row], questions=question, **options)[0]
            assert alone.log_prob == pytest.approx(score.log_prob, abs=1e-4)
            assert alone.standard_error == pytest.approx(score.standard_error, abs=1e-4)


def test_an_image_is_encoded_and_read_once_for_all_candidates_and_exactly(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, read = [], []
    encode, shown = pipeline.image_codec.encode, pipeline.transformer.image_kv
    monkeypatch.setattr(pipeline.image_codec, "encode", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(
        pipeline.transformer, "image_kv", lambda x: read.append(0 if x is None else len(x)) or shown(x)
    )
    image = noise_images(1)[0]
    pipeline.score(image, TEXTS, batch_size=3, null_weight=1)
    assert encoded == [1]
    assert read == ([] if pipeline.transformer.config.image_attends_text else [1, 0])
    encoded.clear()
    pipeline.choose(noise_images(5), TEXTS, batch_size=2)
    assert sum(encoded) == 5


def test_the_kept_image_side_gives_the_scores_of_whole_forwards() -> None:
    pipeline = tiny_pipeline(image_attends_text=False)
    image = noise_images(1)[0]
    kept = pipeline.score(image, "a cat")[0].log_prob
    assert kept == pytest.approx(by_orders(pipeline, image, "A:", "a cat"), abs=1e-5)


def test_a_masked_text_is_encoded_once_for_all_images_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, shown = tiny_pipeline(), []
    states = pipeline.text_codec.states
    monkeypatch.setattr(pipeline.text_codec, "states", lambda ids: shown.append(len(ids)) or states(ids))
    pipeline.score(noise_images(4), "a cat", batch_size=8)
    assert shown == [2, 2, 2, 1]  # sets, each of four images


def test_texts_of_one_length_are_scored_under_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, masked = tiny_pipeline(), set()
    states = pipeline.text_codec.states

    def noted(ids: torch.Tensor) -> torch.Tensor:
        masked.update(tuple(row) for row in (ids == pipeline.text_codec.mask_token_id).tolist())
        return states(ids)

    monkeypatch.setattr(pipeline.text_codec, "states", noted)
    pipeline.score(noise_images(1), ["a photo of the red dog", "a photo of the blue car"], num_samples=12)
    assert len(masked) == 12


# --- choosing ---


def test_choosing_is_scoring_every_candidate(pipeline: Pipeline) -> None:
    images, questions = noise_images(2), ["is there a cat?", "what color is the dog?"]
    words = ["yes", "no", "red"]
    choices = pipeline.choose(images, words, questions=questions)
    for image, question, choice in zip(images, questions, choices, strict=True):
        scores = pipeline.score(image, words, questions=question)
        assert log_probs(list(choice.scores)) == pytest.approx(log_probs(scores), abs=1e-4)
        assert choice.text == words[choice.index]
        assert choice.scores[choice.index].log_prob == max(log_probs(list(choice.scores)))
        expected = torch.tensor(log_probs(scores), dtype=torch.float64).softmax(0)
        assert choice.probabilities == pytest.approx(expected.tolist(), abs=1e-4)
    assert len(pipeline.choose(images[0], words, questions=questions)) == 2
    assert len(pipeline.choose(None, words)) == 1


def test_lengths_are_made_comparable_where_that_is_asked_for() -> None:
    scores = [Score(-4.0, 0.0, 2), Score(-6.0, 0.0, 6)]
    assert Choice.among(["a", "b"], scores).text == "a"
    assert Choice.among(["a", "b"], scores, per_token=True).text == "b"


# --- options and mistakes ---


def test_steps_are_counted_over_images_and_the_null_image() -> None:
    pipeline, seen = tiny_pipeline(), []
    pipeline.score(noise_images(2), "a cat", null_weight=1, batch_size=4, on_step=seen.append)
    assert [(step.done, step.total) for step in seen] == [(i + 1, 6) for i in range(6)]  # 14 and 7 in fours
    assert {row for step in seen for row in step.rows} == {0, 1}


def test_the_window_is_the_models_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, shapes = tiny_pipeline(), set()
    states = pipeline.text_codec.states
    monkeypatch.setattr(pipeline.text_codec, "states", lambda ids: shapes.add(ids.shape[1]) or states(ids))
    prefix = len(pipeline.text_codec.token_ids("A:"))
    pipeline.score(None, "a cat")
    pipeline.score(None, "a cat", length=3)
    changed = dataclasses.replace(pipeline, settings=dataclasses.replace(pipeline.settings, caption_length=5))
    changed.score(None, "a cat")
    assert shapes == {pipeline.settings.text_length, prefix + 3, prefix + 5}


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="'seeds'"):
        tiny_pipeline().score(None, "a cat", seeds=1)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (" ", {}, "the text is empty"),
        ("a cat", {"questions": ""}, "the question is empty"),
        ("a cat " * 6, {}, r"the text has 12 tokens and only 10 fit: 'a cat a cat"),
        ("a cat", {"length": 2}, "the text has 2 tokens and only 1 fit: 'a cat'"),
        ("a cat", {"length": 0}, "length must be at least 1, got 0"),
        ("a cat", {"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ("a cat", {"null_weight": math.nan}, "null_weight must be finite, got nan"),
        ("a cat", {"seed": -1}, "seed must be at least 0 and below 2"),
        ("a cat", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (["a cat", "a dog"], {"questions": ["is there"] * 3}, "2 texts do not match 3 samples"),
        ([], {}, "no text given"),
    ],
)
def test_mistakes_are_refused_in_one_line(texts, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny_pipeline().score(noise_images(1), texts, **options)
    assert "\n" not in str(caught.value)


def test_unknown_words_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="the model does not know the word 'zebra'"):
        tiny_pipeline().score(noise_images(1), "a zebra")


# --- the shipped model ---


@pytest.mark.slow
def test_mini_finds_the_class_of_an_image_among_all_by_score() -> None:
    from ddit.world import CLASSES, PRESETS, make_scene, render

    mini, rng = Pipeline.from_pretrained("mini"), random.Random(0)
    scenes = [
        scene
        for scene in (make_scene(PRESETS["fixed"], "test", i) for i in range(80))
        if scene.kind == "single"
    ]
    drawn = rng.sample(scenes, 12)
    choices = mini.choose(
        [Image.fromarray(render(scene)) for scene in drawn], CLASSES, questions="what is this?"
    )
    right = [choice.text == scene.groups[0].class_name for choice, scene in zip(choices, drawn, strict=True)]
    assert sum(right) >= 11
