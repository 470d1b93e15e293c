"""What training data is made of: the sources' configurations, and how they are mixed, sized and fed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ddit.config.checks import above_zero, at_least, fraction
from ddit.world import WorldConfig


@dataclass(frozen=True)
class WorldData:
    """Scenes of the small world, rendered on the fly (or read from `latents`).

    `question_fraction` is the share of questions among the texts that are read; the rest are captions.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    kind: Literal["world"] = "world"
    split: str = "train"
    num_scenes: int = 100_000
    seed: int = 0
    question_fraction: float = 0.0
    weight: float = 1.0
    latents: str | None = None

    def __post_init__(self) -> None:
        above_zero(self, "weight")
        at_least(self, 1, "num_scenes")
        at_least(self, 0, "seed")
        fraction(self, "question_fraction")


@dataclass(frozen=True)
class JsonData:
    """A JSON list or JSON lines of metadata, one picture an entry: the published form.

    A sample's caption is that of `caption_key`; with probability `original_share`, or where that is missing, that of
    `original_key`. Picture paths are relative to `images`, or without it to the file's folder.
    """

    path: str
    kind: Literal["json"] = "json"
    images: str | None = None
    image_key: str = "image_path"
    caption_key: str = "re_caption"
    original_key: str = "caption"
    original_share: float = 0.1
    weight: float = 1.0
    latents: str | None = None

    def __post_init__(self) -> None:
        above_zero(self, "weight")
        fraction(self, "original_share")


@dataclass(frozen=True)
class TarData:
    """Tar shards as img2dataset and webdataset write them; members with one stem are one sample.

    `path` is a file, a folder, or a pattern with `*`, `?` or `{00..99}`. The caption is the member `.txt`, or with
    `caption_key` that key of the member `.json`; `original_key` and `original_share` as in `JsonData`.
    """

    path: str
    kind: Literal["tar"] = "tar"
    caption_key: str | None = None
    original_key: str | None = None
    original_share: float = 0.1
    weight: float = 1.0
    latents: str | None = None

    def __post_init__(self) -> None:
        above_zero(self, "weight")
        fraction(self, "original_share")


@dataclass(frozen=True)
class LlavaData:
    """Conversations in LLaVA's JSON form; one without a picture is read with the null image."""

    path: str
    kind: Literal["llava"] = "llava"
    images: str | None = None
    weight: float = 1.0
    latents: str | None = None

    def __post_init__(self) -> None:
        above_zero(self, "weight")


@dataclass(frozen=True)
class QuestionsData:
    """Questions and answers in the form of VQAv2: a file of questions and one of annotations.

    `image_pattern` makes a file name of an `image_id`. The training target is one of the human answers, drawn by its
    share among them. `unanswerable`: questions may have no answer (VizWiz), and say so.
    """

    questions: str
    annotations: str
    kind: Literal["questions"] = "questions"
    images: str | None = None
    image_pattern: str = "COCO_train2014_{image_id:012d}.jpg"
    unanswerable: bool = False
    weight: float = 1.0
    latents: str | None = None

    def __post_init__(self) -> None:
        above_zero(self, "weight")


@dataclass(frozen=True)
class HuggingFaceData:
    """A data set of the `datasets` library: a hub id, or a folder or pattern of parquet files.

    Either `caption_key`, or `question_key` and `answer_key`, names the text columns.
    """

    path: str
    kind: Literal["huggingface"] = "huggingface"
    name: str | None = None
    split: str = "train"
    image_key: str = "image"
    caption_key: str | None = None
    question_key: str | None = None
    answer_key: str | None = None
    weight: float = 1.0
    latents: str | None = None

    def __post_init__(self) -> None:
        above_zero(self, "weight")


SourceConfig = WorldData | JsonData | TarData | LlavaData | QuestionsData | HuggingFaceData


@dataclass(frozen=True)
class DataConfig:
    """Which pictures are drawn and read, at what size, and how the samples reach the step.

    Attributes:
        t2i: sources of pictures with a caption to draw from, mixed by weight.
        i2t: sources of pictures with texts to be read off; empty: the same as `t2i`.
        held_out: sources of the figures by which a run is watched; never trained on.
        image_size: pixels; the side of a square picture, or the square root of the area of a bucket.
        num_buckets: 1 crops every picture to a square; more: so many aspect ratios, from tall to wide.
        t2i_length, i2t_length: tokens.
        sample_latents: draw latents from the autoencoder's distribution (published) rather than take its mode.
        num_workers: processes a rank that load and decode; 0: in the training process.
        max_corrupt_share: the run stops when more than this share of the samples was unreadable.
    """

    t2i: tuple[SourceConfig, ...] = ()
    i2t: tuple[SourceConfig, ...] = ()
    held_out: tuple[SourceConfig, ...] = ()
    image_size: int = 256
    num_buckets: int = 1
    t2i_length: int = 64
    i2t_length: int = 64
    sample_latents: bool = True
    num_workers: int = 4
    max_corrupt_share: float = 0.02

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "num_buckets", "t2i_length", "i2t_length")
        at_least(self, 0, "num_workers")
        fraction(self, "max_corrupt_share")
