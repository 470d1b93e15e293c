"""Best of several drawings: the model reads its own pictures and keeps that in which it finds the prompt likeliest."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ddit.inference.batching import Step, sample_seeds
from ddit.inference.image_generator import DrawCall, ImageGenerator
from ddit.inference.scoring import ScoreCall, Scorer


def draw_best(
    drawer: ImageGenerator, scorer: Scorer, prompts: Sequence[str], best_of: int, call: DrawCall
) -> list[Image.Image]:
    """A picture a prompt, the one of `best_of` with the highest score of the prompt as its caption.

    Candidate j of a sample is drawn from the j-th noise of the sample's generator: the first is what it is without
    candidates. Correcting the scores by the null image would choose the same, as all candidates have one prompt.

    Raises:
        ValueError: as `ImageGenerator.draw` and `Scorer.score`, and if best_of is less than 1.
    """
    if best_of < 1:
        raise ValueError(f"best_of must be at least 1, got {best_of}")
    if best_of == 1:
        return drawer.draw(list(prompts), call)
    texts = [prompt for prompt in prompts for _ in range(best_of)]
    scorer.check(prompts)  # before anything is drawn
    candidates = drawer.draw(
        texts, _repeated(call, len(prompts), best_of), draws=[*range(best_of)] * len(prompts)
    )
    reading = ScoreCall(height=call.height, width=call.width)
    scores = scorer.score(texts, [None] * len(texts), candidates, reading)
    best = (
        max(range(first, first + best_of), key=lambda row: scores[row].log_prob)
        for first in range(0, len(texts), best_of)
    )
    return [candidates[row] for row in best]


def _repeated(call: DrawCall, count: int, best_of: int) -> DrawCall:
    """The call for `best_of` candidates of each of so many samples; its callback is told the samples' numbers."""
    seeds = [seed for seed in sample_seeds(call.seed, count) for _ in range(best_of)]
    negatives, tell = call.negative_prompt, call.on_step
    if negatives is not None and not isinstance(negatives, str) and len(negatives) > 1:
        negatives = [negative for negative in negatives for _ in range(best_of)]

    def step(now: Step) -> None:
        if tell is not None:
            tell(now._replace(rows=[row // best_of for row in now.rows]))

    return replace(call, seed=seeds, negative_prompt=negatives, on_step=None if tell is None else step)
