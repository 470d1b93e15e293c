"""Global batch k of a run as tensors: a pure function of (seed, k), in which nothing random is left to the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddit import flow, masked, prompts
from ddit.config import DualRun
from ddit.data.buckets import Shape, bucket_shapes
from ddit.data.latents import CachedSource
from ddit.data.mixture import HalfBatches, Place
from ddit.data.sampler import noise_rng, sample_rng
from ddit.data.samples import BrokenSample, Latents, Sample, Source
from ddit.encoders import ImageCodec, TextCodec
from ddit.images import fit_image
from ddit.prompts import MINI, PUBLISHED, PromptStyle, TokenizedPrompt
from ddit.train.batch import Batch, Drawn, Pictures, Read, split

DRAW, READ = 0, 1
_MAX_ATTEMPTS = 100
STYLES = {"published": PUBLISHED, "mini": MINI}


class ImageFacts(NamedTuple):
    """What making batches needs to know of the autoencoder: a loader's process has no use for its weights."""

    channels: int
    downsample: int
    fingerprint: str | None = None

    @classmethod
    def of(cls, codec: ImageCodec) -> Self:
        return cls(codec.channels, codec.downsample, codec.fingerprint())


class StepData(Dataset[list[Batch]]):
    """Item `step` is the list of this rank's micro-batches of global batch `step`.

    A global batch has round(B * read_fraction) samples to read and the rest to draw. Everything random about sample
    `position` (caption, dropout, times, noise, masks) comes from (seed, step, position), so that the global batch is
    the same for any number of ranks, workers and micro-batches.

    Args:
        codec: its encoder is not kept.
        facts: of the autoencoder that the run uses.
        rank, num_ranks: whose part of the global batch this is.
        draw, read: opened sources with their weights, instead of those of `cfg.data`, for tests.

    Raises:
        ValueError: in one line, for settings that do not fit together.
    """
