"""Best of several images: the model scores its own images and keeps the one in which the prompt is likeliest."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ddit.inference.batching import Seed, Step, StepCallback, repeated, sample_seeds
from ddit.inference.image_generator import ImageGenerator
from ddit.inference.scoring import Scorer
from ddit.settings import ImageOptions, ScoreOptions


def generate_best(
    generator: ImageGenerator,
    scorer: Scorer,
    prompts: Sequence[str],
    best_of: int,
    options: ImageOptions,
    *,
    seed: Seed = 0,
    on_step: StepCallback | None = None,
) -> list[Image.Image]:
    """An image a prompt, the one of `best_of` with the highest score of the prompt as its caption.

    Candidate j of a sample takes the j-th noise of the sample's generator: the first is what it is without candidates.
    Correcting the scores by the null image would choose the same, as all candidates have one prompt.

    Raises:
        ValueError: as `ImageGenerator.generate` and `Scorer.score`, and if best_of is less than 1.
    """
    if best_of < 1:
        raise ValueError(f"best_of must be at least 1, got {best_of}")
    if best_of == 1:
        return generator.generate(list(prompts), options, seed=seed, on_step=on_step)
    scorer.check(prompts)  # before anything is generated
    negatives = options.negative_prompt
    if negatives is not None and not isinstance(negatives, str) and len(negatives) > 1:
        options = replace(options, negative_prompt=repeated(negatives, best_of))
    texts = repeated(prompts, best_of)

    def step(now: Step) -> None:
        if on_step is not None:
            on_step(now._replace(rows=[row // best_of for row in now.rows]))

    images = generator.generate(
        texts,
        options,
        seed=repeated(sample_seeds(seed, len(prompts)), best_of),
        candidates=[*range(best_of)] * len(prompts),
        on_step=None if on_step is None else step,
    )
    scores = scorer.score(texts, [None] * len(texts), images, ScoreOptions(size=options.size))
    best = (
        max(range(first, first + best_of), key=lambda row: scores[row].log_prob)
        for first in range(0, len(texts), best_of)
    )
    return [images[row] for row in best]
