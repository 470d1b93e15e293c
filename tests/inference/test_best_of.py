"""Best of N: candidates, which of them is kept, seeds, what is reported on the way."""

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from ddit.inference.image_generator import make_noise
from ddit.pipeline import Pipeline

PROMPTS = ["a photo of the red dog", "a cat", "two car"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def candidates(pipeline: Pipeline, prompt: str, count: int, seed: int) -> list[Image.Image]:
    """The images of the first noises of a seed's generator."""
    options = pipeline.settings.image_options({})
    return pipeline._image_generator.generate(
        [prompt] * count, options, seed=[seed] * count, candidates=range(count)
    )


def test_the_candidate_with_the_likeliest_prompt_is_kept(pipeline: Pipeline) -> None:
    kept = pipeline.generate(PROMPTS, seed=4, best_of=3)
    places = set()
    for row, prompt in enumerate(PROMPTS):
        made = candidates(pipeline, prompt, 3, 4 + row)
        assert min(difference(made[0], other) for other in made[1:]) > 5
        scores = [score.log_prob for score in pipeline.score(made, prompt)]
        best = max(range(3), key=scores.__getitem__)
        places.add(best)
        assert difference(kept[row], made[best]) <= 1
    assert places != {0}  # else keeping the first would do


def test_the_first_candidate_is_the_image_of_best_of_one(pipeline: Pipeline) -> None:
    plain = pipeline.generate(PROMPTS, seed=4)
    for row, prompt in enumerate(PROMPTS):
        assert difference(plain[row], candidates(pipeline, prompt, 2, 4 + row)[0]) <= 1
        assert difference(plain[row], pipeline.generate(PROMPTS, seed=4, best_of=1)[row]) == 0


def test_candidates_take_one_noise_after_the_other_of_their_generator() -> None:
    first, second, third = make_noise([7, 7, 8], (2, 3), [0, 1, 1])
    assert first.equal(make_noise([7], (2, 3))[0])
    assert not first.equal(second)
    assert not second.equal(third)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_of_the_best_is_the_single_calls(pipeline: Pipeline, batch_size: int) -> None:
    negatives = ["two car", "the dog", "blue"]
    batch = pipeline.generate(
        PROMPTS, seed=[5, 9, 2], best_of=2, batch_size=batch_size, negative_prompt=negatives
    )
    for row, (prompt, seed) in enumerate(zip(PROMPTS, [5, 9, 2], strict=True)):
        alone = pipeline.generate(prompt, seed=seed, best_of=2, negative_prompt=negatives[row])[0]
        assert difference(batch[row], alone) <= 1


def test_images_of_another_size_are_read_at_that_size(pipeline: Pipeline) -> None:
    assert pipeline.generate("a cat", best_of=2, height=16, width=48)[0].size == (48, 16)


def test_steps_tell_of_all_candidates_by_their_samples_number(pipeline: Pipeline) -> None:
    seen = []
    pipeline.generate(PROMPTS[:2], best_of=2, batch_size=3, num_steps=2, on_step=seen.append)
    assert [(step.done, step.total) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [list(step.rows) for step in seen] == [[0, 0, 1]] * 2 + [[1]] * 2
    assert [len(step.state.clean) for step in seen] == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("prompt", "best_of", "message"),
    [
        ("a cat", 0, "best_of must be at least 1, got 0"),
        ("a cat a cat a cat a cat a cat a cat", 2, "the text has 12 tokens and only 10 fit"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_generated(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, prompt: str, best_of: int, message: str
) -> None:
    monkeypatch.setattr(
        type(pipeline._image_generator), "generate", lambda *_, **__: pytest.fail("generated")
    )
    with pytest.raises(ValueError, match=message):
        pipeline.generate(prompt, best_of=best_of)
