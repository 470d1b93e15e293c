"""What reusing the image side or the text encoder's states over several steps does to a model's predictions.

    OMP_NUM_THREADS=1 python benchmarks/reading_error.py [--model DIR]

Prints a table of reading_error.md, in two minutes on one core. `mini`'s image side is exact however long it is reused.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, subs_log_probs
from ddit.inference.callables import ImageContext
from ddit.inference.text_generator import TextGenerator
from ddit.pipeline import Images, Pipeline
from ddit.settings import TextSampling
from ddit.world import PRESETS, make_question, make_scene, render

NUM_SCENES = 32
REUSED: tuple[dict[str, Any], ...] = (
    {"image_refresh": 2}, {"image_refresh": 4}, {"image_refresh": 0},
    {"text_refresh": 2}, {"text_refresh": 4}, {"text_refresh": 0},
)  # fmt: skip


class ApproximationError(NamedTuple):
    """How far approximate predictions of masked tokens are from the exact ones.

    kl: mean divergence of the exact from the approximate distribution, in nats a position.
    agreement: share of the positions with the same likeliest token.
    num_positions: masked positions, all steps together.
    """

    kl: float
    agreement: float
    num_positions: int


class ErrorMeter:
    """A `LogitsFn` that answers with the exact logits and measures how far the approximate ones are from them."""

    def __init__(self, exact: LogitsFn, approximate: LogitsFn, mask_token_id: int) -> None:
        self.exact, self.approximate, self.mask_token_id = exact, approximate, mask_token_id
        self._kl, self._agree, self._count = 0.0, 0, 0

    def __call__(self, noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        logits = self.exact(noisy_ids, is_masked, rows)
        p, q = (
            subs_log_probs(x, self.mask_token_id)
            for x in (logits, self.approximate(noisy_ids, is_masked, rows))
        )
        self._kl += torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum().item()
        self._agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        self._count += len(p)
        return logits

    @property
    def error(self) -> ApproximationError:
        count = max(self._count, 1)
        return ApproximationError(self._kl / count, self._agree / count, self._count)


class _MeteredGenerator(TextGenerator):
    """Samples by exact predictions, and meters those of the sampling that is asked for."""

    meters: list[ErrorMeter]

    def logits_fn(self, context: ImageContext, answer_mask: Tensor, sampling: TextSampling) -> LogitsFn:
        exact = replace(sampling, image_refresh=1, text_refresh=1)
        of = super().logits_fn
        meter = ErrorMeter(
            of(context, answer_mask, exact), of(context, answer_mask, sampling), self.text_codec.mask_token_id
        )
        self.meters.append(meter)
        return meter


class _MeteredPipeline(Pipeline):
    meters: list[ErrorMeter]

    @property
    def _text_generator(self) -> TextGenerator:
        generator = _MeteredGenerator(self.transformer, self.image_codec, self.text_codec)
        generator.meters = self.meters
        return generator


def measure_error(
    pipeline: Pipeline, images: Images | None, questions: str | Sequence[str] | None = None, **options: Any
) -> ApproximationError:
    """How far `image_refresh` and `text_refresh` take the predictions from the exact ones.

    Captions, or answers to questions, are sampled by exact predictions; every step's are compared with the approximate
    ones. Arguments and errors as in `Pipeline.caption` and `answer`.

    Raises:
        ValueError: if the model writes in blocks, where every step is exact.
    """
    if pipeline.transformer.config.text_block_size:
        raise ValueError("a model that writes in blocks reuses no prediction: take one without")
    metered = _MeteredPipeline(
        pipeline.transformer, pipeline.image_codec, pipeline.text_codec, pipeline.settings
    )
    metered.meters = []
    if questions is None:
        metered.caption(images, **options)
    else:
        metered.answer(images, questions, **options)
    errors = [meter.error for meter in metered.meters]
    total = sum(error.num_positions for error in errors)
    kl, agreement = (
        sum(value * error.num_positions for value, error in zip(values, errors, strict=True)) / total
        for values in ([error.kl for error in errors], [error.agreement for error in errors])
    )
    return ApproximationError(kl, agreement, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="one that does not write in blocks")
    pipeline = Pipeline.from_pretrained(parser.parse_args().model, device="cpu")
    scenes = [make_scene(PRESETS["fixed"], "test", index) for index in range(NUM_SCENES)]
    images = [Image.fromarray(render(scene)) for scene in scenes]
    asked = [make_question(scene, random.Random(index)) for index, scene in enumerate(scenes)]
    questions = [item.text for item in asked if item is not None]
    assert len(questions) == NUM_SCENES
    print(
        "| texts | reused | positions | mean KL, nats | same likeliest token | same text |\n"
        + "|---|---|---|---|---|---|"
    )
    for texts in ("captions", "answers"):

        def sample(texts: str = texts, **options: Any) -> list[str]:
            if texts == "captions":
                return pipeline.caption(images, batch_size=NUM_SCENES, **options)
            return pipeline.answer(images, questions, batch_size=NUM_SCENES, **options)

        exact = sample()
        for reused in REUSED:
            about = None if texts == "captions" else questions
            error = measure_error(pipeline, images, about, batch_size=NUM_SCENES, **reused)
            same = sum(a == b for a, b in zip(exact, sample(**reused), strict=True)) / NUM_SCENES
            ((name, every),) = reused.items()
            print(
                f"| {texts} | `{name}={every}` | {error.num_positions} | {error.kl:.4f} | {error.agreement:.3f} |"
                f" {same:.2f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
