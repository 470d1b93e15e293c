"""What clients send: OpenAI's fields and the options of `ddit.settings`, checked strictly.

OpenAI's other fields are ignored with a notice, or refused with a reason (`openai_fields`). An unknown field is
refused, since it is most likely a typing error. A field that is null is not given.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_origin

from fastapi import UploadFile
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)

from ddit.errors import near_misses
from ddit.schema import list_options
from ddit.serve import openai_fields
from ddit.serve.errors import ApiError
from ddit.settings import CaptionOptions, ImageOptions

SEEDS = 2**62
"""Seeds of the pipeline are below this."""

SMALLEST_TOP_P = 1e-9
"""Stands for OpenAI's 0: only the likeliest token is drawn."""


def random_seed() -> int:
    """A seed where none is given, small enough for JavaScript's numbers."""
    return secrets.randbelow(2**32)


def _pipeline_seed(seed: int) -> int:
    """-1 is a random seed, as clients mean it; OpenAI's other ones are counted around `SEEDS`."""
    return random_seed() if seed == -1 else seed % SEEDS


Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), AfterValidator(_pipeline_seed)]
SEED_HELP = "any 64-bit integer; by default, and for -1, a random one, which the answer contains"
Model = TypeVar("Model", bound="ApiModel")

LISTS = frozenset(option.name for option in list_options(ImageOptions) if get_origin(option.kind) is tuple)
"""Options of images with several values: a form repeats such a field."""


class ApiModel(BaseModel):
    """Strict: no strings for numbers, no NaN, no unknown fields.

    OPTIONS: the fields that `with_options` added.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    FOREIGN: ClassVar[Mapping[str, openai_fields.Field]] = {}

    _notices: list[str] = PrivateAttr(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options that are given."""
        values = {name: getattr(self, name) for name in self.OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def notices(self) -> list[str]:
        """What is said about the fields that are ignored."""
        return self._notices

    @model_validator(mode="wrap")
    @classmethod
    def _check_names(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raises ApiError for a field that is refused or unknown."""
        if not isinstance(given, dict):
            return handler(given)
        kept, notices = {}, []
        for name, value in given.items():
            short = re.sub(r"\[.*", "", str(name))
            foreign = cls.FOREIGN.get(short)
            # forms name members of lists "image[]", and those of objects "svg[model]"
            if name in cls.model_fields or (name == f"{short}[]" and short in cls.model_fields):
                kept[short] = value
            elif foreign is None:
                shown = str(name)[:60]
                message = f"unknown field '{shown}'{near_misses(shown, cls.model_fields)}"
                raise ApiError(message, param=shown, code="unknown_parameter")
            if foreign is None or foreign.is_neutral(value):
                continue
            if foreign.refused:
                raise ApiError(foreign.fault(short), param=short, code="unsupported_parameter")
            notices.append(foreign.notice(short))
        made = handler({name: value for name, value in kept.items() if value is not None})
        made._notices = notices
        return made


def with_options(
    options: Any, *, but: Iterable[str], at_most: Mapping[str, float]
) -> Callable[[type[Model]], type[Model]]:
    """Adds the fields of a strict dataclass to a request; one that is not given is None.

    but: those that clients say in another way, or not at all. at_most: bounds of this server's own.
    """

    def add(cls: type[Model]) -> type[Model]:
        fields: dict[str, Any] = {}
        for option in list_options(options):
            if option.name in but:
                continue
            bound = {"le": at_most[option.name]} if option.name in at_most else {}
            metadata = option._replace(bounds=option.bounds | bound).metadata
            lists = Field(strict=False if option.name in LISTS else None)  # JSON has no tuples
            fields[option.name] = (Annotated[option.kind | None, metadata, lists], None)
        made = create_model(
            cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **fields
        )
        made.OPTIONS = tuple(fields)
        return made

    return add


# --- images ---


def _check_size(size: str) -> str:
    if not re.fullmatch(r"auto|[0-9]{1,5}x[0-9]{1,5}", size):
        raise ValueError(f"'{size[:20]}' is not auto or WIDTHxHEIGHT in pixels, such as 64x64")
    return size


def _check_background(background: Any) -> Any:
    if background == "transparent":
        raise ValueError("the model's images are opaque: transparent is not supported, auto and opaque are")
    return background


Size = Annotated[str, AfterValidator(_check_size)]
Background = Annotated[Literal["auto", "opaque"], BeforeValidator(_check_background)]


@with_options(
    ImageOptions, but=("height", "width", "batch_size", "negative_prompt"), at_most={"guidance_scale": 100}
)
class ImageRequest(ApiModel):
    """The fields of all requests for images."""

    FOREIGN = openai_fields.IMAGE_FIELDS

    model: str | None = Field(None, description="this server's model; may be left out")
    n: int = Field(1, ge=1, description="images; image i has the seed `seed` + i")
    size: Size = Field("auto", description="width x height in pixels, before `upscale`, or auto")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg and webp")
    background: Background = Field("auto", description="the model's images are opaque")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3, description="images on the way, with `stream`")
    seed: Seed = Field(default_factory=random_seed, description=SEED_HELP)
    negative_prompt: str | None = Field(None, min_length=1, description="what guidance leads away from")
    best_of: int = Field(1, ge=1, le=16, description="candidates for each image, of which the best is kept")
    upscale: int = Field(1, ge=1, le=64, description="enlarges the image that is sent back")

    @model_validator(mode="after")
    def _notice_compression(self) -> Self:
        if self.output_format == "png" and self.output_compression not in (None, 100):
            self._notices.append("'output_compression' is ignored: a png loses nothing")
        return self


class GenerationRequest(ImageRequest):
    prompt: str = Field(min_length=1)


class ImageForm(ImageRequest):
    """A form: its numbers are strings, and it brings an image."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    image: UploadFile
    strength: float | None = Field(
        None, gt=0, le=1, description="without a mask: how far from the image, up to 1 [default: 0.7]"
    )


class EditForm(ImageForm):
    prompt: str = Field(min_length=1)
    mask: UploadFile | None = None


class VariationForm(ImageForm):
    prompt: str | None = Field(None, min_length=1, description="by default the model's caption of the image")


def _check_purpose(purpose: Any) -> Any:
    if purpose not in ("vision", "user_data", "assistants"):
        shown = str(purpose)[:60]
        raise ValueError(f"'{shown}' is not supported: files are images to ask about, of the purpose vision")
    return purpose


Purpose = Annotated[Literal["vision", "user_data", "assistants"], BeforeValidator(_check_purpose)]


class UploadForm(ApiModel):
    FOREIGN = openai_fields.FILE_FIELDS

    file: UploadFile
    purpose: Purpose = Field("vision", description="user_data and assistants are kept as vision")


# --- chat ---


class ImageUrl(BaseModel):
    model_config = ConfigDict(strict=True)

    url: str = Field(
        description="an image as a data URL or in base64, a URL of this server's files, or a public address if allowed"
    )
    detail: str | None = Field(None, description="ignored: the model sees all images at one size")


class FileRef(BaseModel):
    model_config = ConfigDict(strict=True)

    file_id: str | None = Field(None, description="of an upload (POST /v1/files)")
    file_data: str | None = Field(None, description="an image as a data URL or in base64")


def _check_part_type(kind: Any) -> Any:
    if kind not in ("text", "image_url", "file", "refusal"):
        raise ValueError(f"parts of type '{str(kind)[:60]}' are not supported; text, image_url and file are")
    return kind


PartType = Annotated[Literal["text", "image_url", "file", "refusal"], BeforeValidator(_check_part_type)]


def _as_image_url(given: Any) -> Any:
    """Many clients send the URL itself."""
    return {"url": given} if isinstance(given, str) else given


class ContentPart(BaseModel):
    """A text or an image; in what the model said also a refusal."""

    model_config = ConfigDict(strict=True)

    type: PartType
    text: str | None = None
    image_url: Annotated[ImageUrl | None, BeforeValidator(_as_image_url)] = None
    file: FileRef | None = None
    refusal: str | None = None

    @property
    def is_image(self) -> bool:
        return self.type in ("image_url", "file")

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type '{self.type}' needs the field '{self.type}'")
        if self.file is not None and (self.file.file_id is None) == (self.file.file_data is None):
            raise ValueError("a file needs either 'file_id' or 'file_data'")
        return self


class Message(BaseModel):
    """Of a conversation. The model is shown the last user's text and the newest image and, if it writes in blocks, the
    turns between them."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @property
    def images(self) -> list[ContentPart]:
        parts = self.content if isinstance(self.content, list) else []
        return [part for part in parts if part.is_image]

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


def _check_modalities(given: Any) -> Any:
    if isinstance(given, list) and any(one != "text" for one in given):
        raise ValueError("the model writes text only")
    return given


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


@with_options(
    CaptionOptions,
    but=("length", "height", "width", "batch_size"),
    at_most={"temperature": 2, "text_guidance_scale": 100},
)
class ChatRequest(ApiModel):
    FOREIGN = openai_fields.CHAT_FIELDS

    model: str | None = Field(None, description="this server's model; may be left out")
    messages: list[Message] = Field(min_length=1, max_length=256)
    modalities: Annotated[list[Literal["text"]], BeforeValidator(_check_modalities)] = ["text"]
    n: int = Field(1, ge=1, description="answers; answer i has the seed `seed` + i")
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: Seed = Field(default_factory=random_seed, description=SEED_HELP)
    max_tokens: int | None = Field(
        None, ge=1, description="positions to fill; unless the model writes in blocks, at most its own"
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="as max_tokens")
    presence_penalty: float = Field(0, ge=-2, le=2, description="ignored, with a notice")
    frequency_penalty: float = Field(0, ge=-2, le=2, description="ignored, with a notice")
    task: Literal["caption", "answer", "infill"] | None = Field(
        None,
        description="by default: caption without a text, infill with blanks (two or more underscores), else answer",
    )

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @field_validator("top_p", mode="before", check_fields=False)
    @classmethod
    def _allow_zero(cls, given: Any) -> Any:
        return SMALLEST_TOP_P if type(given) in (int, float) and given == 0 else given

    @model_validator(mode="after")
    def _check_most_tokens(self) -> Self:
        if None not in (both := (self.max_tokens, self.max_completion_tokens)) and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        return self
