"""What training data is made of: the sources, and how they are mixed, sized and loaded."""

from dataclasses import field
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ddit.schema import strict
from ddit.settings import PositiveInt
from ddit.world.presets import WorldConfig
from ddit.world.wide.presets import WideConfig
from ddit.world.wide.questions import WIDE_QUESTION_KINDS

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@strict
class AnySource:
    """What every source has.

    `weight` is its share of its half of the batch, `latents` a folder of its cached latents. `part` "train" leaves out
    `held_out_share` of the samples, and "held_out" has these alone. A hash of the image (of the text, where there is
    none) decides, so that samples of equal images are in one part, whatever their order.
    """

    weight: PositiveFloat = field(default=1.0, kw_only=True)
    latents: str | None = field(default=None, kw_only=True)
    part: Literal["all", "train", "held_out"] = field(default="all", kw_only=True)
    held_out_share: Share = field(default=0.05, kw_only=True)


@strict
class WorldData(AnySource):
    """Scenes of the small world, rendered on the fly (or read from `latents`).

    `question_fraction` is the share of questions among the i2t texts; the rest are captions.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    kind: Literal["world"] = "world"
    split: str = "train"
    num_scenes: PositiveInt = 100_000
    seed: NonNegativeInt = 0
    question_fraction: Fraction = 0.0


@strict
class WideData(AnySource):
    """Scenes of the wide world, rendered on the fly (or read from `latents`), with texts in many wordings.

    `wordings` "seen" leaves out the wordings that are held out, and "held_out" has these alone. Of the i2t samples so
    many are questions, detailed descriptions, conversations and small talk; the rest are captions. Of
    the prompts `detailed_prompt_fraction` are detailed descriptions. `question_emphasis` says how many times as often
    as usual a kind of question is asked. `plain_descriptions`: the detailed ones are in one wording, which leaves a
    model nothing to guess but what is in the image, so that it can write many tokens at once.
    """

    world: WideConfig = field(default_factory=WideConfig)
    kind: Literal["wide"] = "wide"
    split: str = "train"
    num_scenes: PositiveInt = 1_000_000
    seed: NonNegativeInt = 0
    wordings: Literal["seen", "held_out", "all", "paraphrased"] = "seen"
    question_fraction: Fraction = 0.4
    question_emphasis: dict[str, NonNegativeFloat] = field(default_factory=dict)
    detailed_fraction: Fraction = 0.25
    plain_descriptions: bool = False
    conversation_fraction: Fraction = 0.2
    small_talk_fraction: Fraction = 0.01
    detailed_prompt_fraction: Fraction = 0.1

    def __post_init__(self) -> None:
        names = ("question_fraction", "detailed_fraction", "conversation_fraction", "small_talk_fraction")
        total = sum(getattr(self, name) for name in names)
        if total > 1 + 1e-9:
            raise ValueError(f"{', '.join(names)} must not add up to more than 1, got {total:g}")
        unknown = set(self.question_emphasis) - set(WIDE_QUESTION_KINDS)
        if unknown:
            names, known = ", ".join(sorted(unknown)), ", ".join(WIDE_QUESTION_KINDS)
            raise ValueError(f"question_emphasis: unknown kinds {names}; known: {known}")
        if all(self.question_emphasis.get(kind) == 0 for kind in WIDE_QUESTION_KINDS):
            raise ValueError("question_emphasis is 0 for every kind of question")


@strict
class JsonData(AnySource):
    """A JSON list or JSON lines of metadata, one image an entry: the published form. Or COCO's file of captions.

    A sample's caption is that of `caption_key`; with probability `original_share`, or where that is missing, that of
    `original_key`; of a list of captions one is taken at random. Image paths are relative to `images`, or without it
    to the file's folder.
    """

    path: str
    kind: Literal["json"] = "json"
    images: str | None = None
    image_key: str = "image_path"
    caption_key: str = "re_caption"
    original_key: str = "caption"
    original_share: Fraction = 0.1


@strict
class FoldersData(AnySource):
    """A folder of images: in folders named after what they show, or each with a text file beside it.

    Of class folders (`dog/1.jpg`, also further down, `train/dog/1.jpg`) a caption is one of `templates` at random, with
    `{name}` from the folder's name and `{article}` "a" or "an". A share `question_fraction` of the i2t texts are
    `question_templates` that the name answers. With `captions` "sidecar" the caption of `1.jpg` is the text of `1.txt`
    or `1.caption`.
    """

    path: str
    kind: Literal["folders"] = "folders"
    captions: Literal["folders", "sidecar"] = "folders"
    templates: tuple[str, ...] = ("a photo of {article} {name}", "{article} {name}", "{name}")
    question_templates: tuple[str, ...] = ("what is this?", "what does the image show?")
    question_fraction: Fraction = 0.5

    def __post_init__(self) -> None:
        if not self.templates or not all(text.strip() for text in self.question_templates or [""]):
            raise ValueError(
                "templates and question_templates must hold one text at least, and none that is empty"
            )
        for template in self.templates:
            if not _is_template(template):
                raise ValueError(
                    f"a template holds {{name}} and may hold {{article}}, as in 'a photo of {{article}} {{name}}', "
                    f"got {template!r}"
                )


def _is_template(template: str) -> bool:
    try:
        made = [template.format(name=name, article="a") for name in ("dog", "cat")]
    except (KeyError, IndexError, ValueError, AttributeError):
        return False
    return made[0] != made[1]


@strict
class TextData(AnySource):
    """Text alone, trained with the null image: only in `data.i2t`.

    `path` is a text file, a folder or a pattern of them, of which each line or paragraph (what blank lines part) is a
    sample; or a file of JSON, JSON lines, CSV or parquet, with the texts under `text_key` [default: text, or the only
    column].
    """

    path: str
    kind: Literal["text"] = "text"
    unit: Literal["line", "paragraph"] = "line"
    text_key: str | None = None


@strict
class TarData(AnySource):
    """Tar shards as img2dataset and webdataset write them; members with one name up to the suffix are one sample.

    `path` is a file, a folder, or a pattern with `*`, `?` or `{00..99}`. The caption is the member `.txt`, or with
    `caption_key` that key of the member `.json`; `original_key` and `original_share` as in `JsonData`.
    """

    path: str
    kind: Literal["tar"] = "tar"
    caption_key: str | None = None
    original_key: str | None = None
    original_share: Fraction = 0.1


@strict
class LlavaData(AnySource):
    """Conversations in LLaVA's JSON form; one that is text alone is trained with the null image.

    The image is the path under `image_key`, or the only one of a list. An entry that has none, but `<image>` in its
    text or other media, is corrupt.
    """

    path: str
    kind: Literal["llava"] = "llava"
    images: str | None = None
    image_key: str = "image"


@strict
class QuestionsData(AnySource):
    """Questions and answers in the form of VQAv2: a file of questions and one of annotations ("" if the file of
    questions holds the answers, as VizWiz's, or is a list of [question, answer, image]).

    `image_pattern` makes a file name of an `image_id`. The training target is one of the human answers, chosen by its
    share among them. `unanswerable`: questions may have no answer (VizWiz), and the prompt says so.
    """

    questions: str
    annotations: str
    kind: Literal["questions"] = "questions"
    images: str | None = None
    image_pattern: str = "COCO_train2014_{image_id:012d}.jpg"
    unanswerable: bool = False


@strict
class HuggingFaceData(AnySource):
    """A data set of the `datasets` library: a hub id, or a folder or pattern of parquet files in the hub's layout.

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


SourceConfig = Annotated[
    WorldData
    | JsonData
    | TarData
    | LlavaData
    | QuestionsData
    | HuggingFaceData
    | FoldersData
    | TextData
    | WideData,
    Field(discriminator="kind"),
]
"""Every path and folder of images may be a URL (s3://, hf://, https://), see `ddit.data.sources.remote`; but no
`FoldersData.path`."""


@strict
class DataConfig:
    """The sources of both directions, the size of their images, and how samples are loaded.

    Attributes:
        t2i: sources of captions to generate images from, mixed by weight.
        i2t: sources of texts about images (captions, answers); empty: the same as `t2i`.
        held_out: sources of the samples by which a run is watched; never trained on.
        image_size: pixels; the side of a square image, or the square root of the area of a bucket.
        num_buckets: 1 crops every image to a square; more: so many aspect ratios, from tall to wide.
        t2i_length, i2t_length: tokens.
        i2t_lengths: shorter ones, in order: an i2t text is padded to the first that holds it and its end. Texts of many
            lengths cost less so; the published training pads all to `i2t_length`.
        texts_per_image: texts that an i2t step draws of each image that it shows: its image stream runs once for them.
        sample_latents: sample latents from the autoencoder's distribution (published) instead of taking its mode.
        num_workers: processes a rank that load and decode; 0: in the training process.
        max_corrupt_share: the run stops when more than this share of the samples could not be used.
    """

    t2i: tuple[SourceConfig, ...] = ()
    i2t: tuple[SourceConfig, ...] = ()
    held_out: tuple[SourceConfig, ...] = ()
    image_size: PositiveInt = 256
    num_buckets: PositiveInt = 1
    t2i_length: PositiveInt = 64
    i2t_length: PositiveInt = 64
    i2t_lengths: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    texts_per_image: PositiveInt = 1
    sample_latents: bool = True
    num_workers: NonNegativeInt = 4
    max_corrupt_share: Fraction = 0.02

    def __post_init__(self) -> None:
        lengths = (*self.i2t_lengths, self.i2t_length)
        if any(one >= other for one, other in pairwise(lengths)):
            raise ValueError(
                f"data.i2t_lengths {list(self.i2t_lengths)} must ascend and end below data.i2t_length {self.i2t_length}"
            )
        for index, source in enumerate(self.t2i):
            if isinstance(source, TextData):
                raise ValueError(
                    f"data.t2i.{index} is text alone, of which no image can be generated: name it in data.i2t"
                )
