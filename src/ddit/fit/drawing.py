"""How well a fitted model generates: what a classifier sees, the distance to real images, and copies of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddit.errors import collect_warnings
from ddit.eval.classifier import MAX_SIDE, NUM_FEATURES, Classifier, train_classifier, untrained
from ddit.eval.frechet import frechet_distance, nearness
from ddit.eval.intervals import wilson
from ddit.eval.items import Figure, mean
from ddit.fit.held_out import Captioned, Clock, Trained, batches, read_trained, to_pixels
from ddit.fit.labels import find_labels, label_in
from ddit.fit.plan import FitPlan
from ddit.fit.section import Section
from ddit.images import to_images, to_tensor
from ddit.pipeline import Pipeline

MAX_DRAWN = 1000
TRAINED_BYTES = 400_000_000
"""Of images that the classifier is trained on, and that generated ones are compared with: 32,000 of 64 px a side."""
MIN_FRECHET = 16
SEED = 0
_BATCH = 32
_COPY_SIDE = 16
_COPY_SHARE = 0.05
_NUM_PAIRS = 8


class Drawn(NamedTuple):
    """Generated images, fitted to the model's size, with the prompts they were generated from.

    A prompt is a held-out caption; `label` is what the image should be recognised as.
    """

    images: list[Image.Image]
    prompts: list[str]
    labels: list[str | None]


@dataclass(frozen=True)
class Judged:
    """What was found of generated images.

    Attributes:
        pairs: the images that are nearest to one that was trained on, each with that one, the nearest first.
    """

    sections: tuple[Section, ...]
    drawn: Drawn
    pairs: tuple[tuple[Image.Image, Image.Image], ...] = ()


@dataclass(frozen=True)
class Judge:
    """What generated images are measured by.

    Attributes:
        side: of the images that it sees, in pixels. device: that it runs on.
        trained: images that the model was trained on; `labels`: what they show.
        classifier: of the labels; None where there is nothing to tell apart. `lines`: how it was made.
    """

    side: int
    device: torch.device
    trained: Trained
    labels: list[str]
    classifier: Classifier | None
    lines: list[str]

    @classmethod
    def make(
        cls, plan: FitPlan, clock: Clock, device: torch.device, *, seconds: float | None = None
    ) -> Judge:
        """seconds: of the classifier's training; None: what is left of the time."""
        side = min(plan.image_size, MAX_SIDE)
        most = TRAINED_BYTES // (3 * side**2)
        trained = read_trained(plan.train, plan.image_size, side, most, clock.part(0.3))
        labels = _label_names(trained)
        classifier, lines = _classifier(trained, labels, plan, seconds or clock.left, device)
        return cls(side, device, trained, labels, classifier, lines)

    @property
    def net(self) -> Classifier:
        """Whose features images are compared in: the classifier, or one with random weights where there is none."""
        return self.classifier or untrained(self.side, seed=SEED, device=self.device)


def judge_images(pipeline: Pipeline, judge: Judge, shown: Sequence[Captioned], clock: Clock) -> Judged:
    """Generates an image for each of half of the held-out captions, as far as the time goes, and measures them.

    The other half of the held-out images is what they are compared with, so that none is compared with the image of its
    own caption.
    """
    drawn = draw(pipeline, shown[: min(len(shown) // 2, MAX_DRAWN)], clock.part(0.8))
    drawn = drawn._replace(labels=[label_of(one, judge.labels) for one in shown[: len(drawn.images)]])
    views = _Views.of(pipeline, shown, drawn, judge.side)
    agreement = _agreement(judge, views, drawn, shown)
    copies, pairs = _copies(views, judge.trained)
    return Judged((agreement, _distances(judge.net, views), copies), drawn, pairs)


def nothing_drawn() -> Judged:
    """Where there is no caption to generate from."""
    return Judged((Section("drawn", "Generated images", lines=(NO_CAPTIONS,)),), Drawn([], [], []))


NO_CAPTIONS = "No held-out image with a caption: none was generated."


def label_of(one: Captioned, labels: Sequence[str]) -> str | None:
    return one.label if one.label in labels else label_in(one.captions[0], labels)


def draw(pipeline: Pipeline, shown: Sequence[Captioned], clock: Clock) -> Drawn:
    """An image for the first caption of each, as far as the time goes; always the same ones."""
    images: list[Image.Image] = []
    prompts = [one.captions[0] for one in shown]
    for rows in batches(len(prompts), _BATCH):
        if images and clock.left < 0:
            break
        with collect_warnings():  # words of held-out captions that no training text has
            images += pipeline.generate(prompts[rows], seed=SEED + rows.start, batch_size=_BATCH)
    return Drawn(images, prompts[: len(images)], [])


def _label_names(trained: Trained) -> list[str]:
    """The classes of the folders, or words that part the captions; [] if there are none."""
    named = sorted({label for label in trained.labels if label is not None})
    return named if len(named) > 1 else find_labels(trained.captions)


class _Views(NamedTuple):
    """The images that are measured, (n, 3, side, side) uint8: generated ones, two halves of the held-out ones, the
    first half as the autoencoder decodes it, and all that are held out."""

    drawn: Tensor
    first: Tensor
    second: Tensor
    decoded: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, pipeline: Pipeline, shown: Sequence[Captioned], drawn: Drawn, side: int) -> _Views:
        count, half = len(drawn.images), len(shown) // 2
        first = [one.image for one in shown[:count]]
        codec = pipeline.image_codec
        decoded: list[Image.Image] = []
        for rows in batches(count, _BATCH):
            decoded += to_images(codec.decode(codec.encode(to_tensor(first[rows]))))
        second = [one.image for one in shown[half : half + count]]
        everything = [one.image for one in shown]
        return cls(
            *(to_pixels(images, side) for images in (drawn.images, first, second, decoded, everything))
        )


def _classifier(
    trained: Trained, labels: Sequence[str], plan: FitPlan, seconds: float, device: torch.device
) -> tuple[Classifier | None, list[str]]:
    """A classifier of the labels, and how it was made; None where there is nothing to tell apart."""
    if len(labels) < 2:
        return None, ["No classifier: the images have no classes, and no few words part their captions."]
    is_folders = any(trained.labels)
    found = [
        own if is_folders else label_in(caption, labels)
        for own, caption in zip(trained.labels, trained.captions, strict=True)
    ]
    rows = torch.tensor([row for row, label in enumerate(found) if label in labels])
    number = {label: row for row, label in enumerate(labels)}
    targets = torch.tensor([number[label] for label in found if label in number])
    is_mirrored = any(run.kind == "latents" and run.mirror and run.num_views > 1 for run in plan.runs)
    classifier = train_classifier(
        trained.pixels[rows],
        targets,
        len(labels),
        seconds=seconds,
        seed=SEED,
        flip=is_mirrored,
        device=device,
    )
    epochs = classifier.num_steps * min(128, len(rows)) / len(rows)
    kind = "the folders' classes" if is_folders else f"the word of {', '.join(labels)} that the caption has"
    return classifier, [
        f"A residual network of 0.5 M parameters was trained on {len(rows):,} of the same images at {classifier.side} "
        f"px, {epochs:.1f} epochs, to tell {kind}. It has seen no held-out and no generated image."
    ]


def _agreement(judge: Judge, views: _Views, drawn: Drawn, shown: Sequence[Captioned]) -> Section:
    title = "Generated images: what a classifier sees"
    classifier, labels, lines = judge.classifier, judge.labels, judge.lines
    if classifier is None:
        return Section("drawn", title, lines=tuple(lines))
    real = [label_of(one, labels) for one in shown]
    own, num = _accuracy(classifier, views.held_out, real, labels)
    counts = Counter(label for label in real if label is not None)
    most = max(counts.values(), default=0) / max(num, 1)
    held_out = Figure("classifier on held-out images", own, num, {"commonest label": most})
    if not num or wilson(own, num)[0] <= most:
        why = "It does not tell held-out images apart better than the commonest label: it cannot judge."
        return Section("drawn", title, (held_out,), (*lines, why))
    found, count = _accuracy(classifier, views.drawn, drawn.labels, labels)
    decoded, _ = _accuracy(classifier, views.decoded, drawn.labels, labels)
    beside = {"the same held-out images, encoded and decoded": decoded, "held-out images": own}
    figure = Figure("generated image is recognised as what was asked for", found, count, beside)
    return Section("drawn", title, (figure, held_out), tuple(lines))


def _accuracy(
    classifier: Classifier, pixels: Tensor, truths: Sequence[str | None], labels: Sequence[str]
) -> tuple[float, int]:
    """The share that is recognised, of the images that have a label, and their number."""
    rows = [row for row, truth in enumerate(truths) if truth is not None]
    if not rows:
        return 0.0, 0
    predicted = classifier.predict(pixels[torch.tensor(rows)]).tolist()
    return mean(float(labels[p] == truths[row]) for p, row in zip(predicted, rows, strict=True)), len(rows)


def _distances(classifier: Classifier, views: _Views) -> Section:
    title = "Generated images: distance to real ones"
    count = min(len(views.drawn), len(views.second))
    if count < MIN_FRECHET:
        why = f"Left out: {count} generated images, and a covariance needs {MIN_FRECHET} at least."
        return Section("frechet", title, lines=(why,))
    drawn, first, second, decoded = (
        classifier.features(part[:count]) for part in (views.drawn, views.first, views.second, views.decoded)
    )
    beside = {
        "two halves of real images": frechet_distance(first, second),
        "real images, encoded and decoded": frechet_distance(decoded, second),
    }
    figure = Figure("Fréchet distance", frechet_distance(drawn, second), count, beside, is_share=False)
    space = (
        "the classifier's last features"
        if classifier.num_steps
        else f"the last features of the same network with random weights, seed {SEED}"
    )
    few = (
        ""
        if count > 2 * NUM_FEATURES
        else " So few images make every distance larger: compare at the same number only."
    )
    line = (
        f"In {space} ({NUM_FEATURES} dimensions, images at {classifier.side} px), between {count:,} generated images "
        f"and {count:,} held-out ones, and the same beside it. It is no FID: compare it within this report alone.{few}"
    )
    return Section("frechet", title, (figure,), (line,))


def _copies(views: _Views, trained: Trained) -> tuple[Section, tuple[tuple[Image.Image, Image.Image], ...]]:
    """Whether generated images lie nearer to a trained one than held-out images do, by small versions of them."""
    title = "Copies of training images"
    if len(trained.pixels) < 3 or len(views.held_out) < MIN_FRECHET:
        why = f"Left out: {len(views.held_out)} held-out images to compare with, and it needs {MIN_FRECHET}."
        return Section("copies", title, lines=(why,)), ()
    known = _small(trained.pixels)
    ratios, nearest = nearness(_small(views.drawn), known)
    usual, _ = nearness(_small(views.held_out), known)
    limit = float(torch.quantile(usual, _COPY_SHARE))
    share = float((ratios < limit).float().mean())
    figure = Figure(
        "generated images nearer to a training image than 95 % of held-out ones",
        share,
        len(ratios),
        {"held-out images": float((usual < limit).float().mean())},
    )
    line = (
        f"By the distance to the nearest of {len(known):,} training images over the mean distance to the nearest 50, "
        f"in {_COPY_SIDE} px versions. A share well above 0.05 says that images are reproduced; `nearest.png` has the "
        "suspicious ones, each with its nearest training image."
    )
    order = ratios.argsort()[:_NUM_PAIRS].tolist()
    pairs = tuple((_image(views.drawn[row]), _image(trained.pixels[nearest[row]])) for row in order)
    return Section("copies", title, (figure,), (line,)), pairs


def _small(pixels: Tensor) -> Tensor:
    """(n, 3 * 16 * 16) from 0 to 1."""
    return torch.cat(
        [F.adaptive_avg_pool2d(part.float() / 255, _COPY_SIDE).flatten(1) for part in pixels.split(1024)]
    )


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
