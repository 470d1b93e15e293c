"""What clients send: OpenAI's fields and the options of `ddit.settings`, checked strictly.

A field that OpenAI knows and that changes nothing here is accepted and ignored. One that would change the answer and is
not supported is refused, and so is an unknown one, which is most likely a typing error.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_origin

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from ddit.errors import near_misses
from ddit.schema import list_options
from ddit.settings import ImageOptions, TextOptions

Seed = Annotated[int, Field(ge=0, lt=2**62)]
Model = TypeVar("Model", bound="ApiModel")

LISTS = frozenset(option.name for option in list_options(ImageOptions) if get_origin(option.kind) is tuple)
"""Options of images with several values: a form repeats such a field."""


class ApiModel(BaseModel):
    """Strict: no strings for numbers, no NaN, no unknown fields.

    OPTIONS: the fields that `with_options` added.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    UNSUPPORTED: ClassVar[frozenset[str]] = frozenset()

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options that are given."""
        values = {name: getattr(self, name) for name in self.OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kept = {}
        for name, value in given.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in cls.UNSUPPORTED:
                if value not in (None, [], {}, False, "none", {"type": "text"}):
                    raise ValueError(f"'{name}' is not supported by this server")
            elif name not in cls.IGNORED:
                shown = str(name)[:60]
                raise ValueError(f"unknown field '{shown}'{near_misses(shown, cls.model_fields)}")
        return kept


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


@with_options(
    ImageOptions, but=("height", "width", "batch_size", "negative_prompt"), at_most={"guidance_scale": 100}
)
class ImageRequest(ApiModel):
    """The fields of all requests for images."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "quality", "style", "moderation", "safety_identifier", "input_fidelity", "effort", "complexity",
        }
    )  # fmt: skip
    UNSUPPORTED: ClassVar[frozenset[str]] = frozenset(
        {"background", "frame_count", "frame_duration_ms", "svg", "reasoning", "markup"}
    )

    model: str | None = Field(None, description="this server's model; may be left out")
    n: int = Field(1, ge=1, description="images; image i has the seed `seed` + i")
    size: str = Field(
        "auto",
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="width x height in pixels, before `upscale`",
    )
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg and webp")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3, description="images on the way, with `stream`")
    seed: Seed | None = Field(None, description="by default a random one, which the answer contains")
    negative_prompt: str | None = Field(None, min_length=1, description="what guidance leads away from")
    best_of: int = Field(1, ge=1, le=16, description="candidates for each image, of which the best is kept")
    upscale: int = Field(1, ge=1, le=64, description="enlarges the image that is sent back")

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, given: Any) -> Any:
        """OpenAI's clients may send null for what is not given."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name == "prompt"}


class GenerationRequest(ImageRequest):
    prompt: str = Field(min_length=1)


class ImageForm(ImageRequest):
    """A form: its numbers are strings, and it brings an image."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    image: UploadFile
    strength: float | None = Field(
        None, gt=0, le=1, description="without a mask: how far from the image, up to 1 [default: 0.7]"
    )

    @model_validator(mode="before")
    @classmethod
    def _strip_brackets(cls, given: Any) -> Any:
        """Clients name a member of a list "image[]"."""
        if not isinstance(given, dict):
            return given
        return {name.removesuffix("[]"): value for name, value in given.items()}


class EditForm(ImageForm):
    prompt: str = Field(min_length=1)
    mask: UploadFile | None = None


class VariationForm(ImageForm):
    prompt: str | None = Field(None, min_length=1, description="by default the model's caption of the image")


class UploadForm(BaseModel):
    file: UploadFile
    purpose: Literal["vision", "user_data", "assistants"] = "vision"


# --- chat ---


class ImageUrl(BaseModel):
    model_config = ConfigDict(strict=True)

    url: str = Field(description="a data URL, a URL of this server's files, or a public address if allowed")


class FileRef(BaseModel):
    model_config = ConfigDict(strict=True)

    file_id: str | None = Field(None, description="of an upload (POST /v1/files)")
    file_data: str | None = Field(None, description="a data URL")


class ContentPart(BaseModel):
    """A text or an image."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "image_url", "file"]
    text: str | None = None
    image_url: ImageUrl | None = None
    file: FileRef | None = None

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type '{self.type}' needs the field '{self.type}'")
        if self.file is not None and (self.file.file_id is None) == (self.file.file_data is None):
            raise ValueError("a file needs either 'file_id' or 'file_data'")
        return self


class Message(BaseModel):
    """Of a conversation. The model is shown the last user's text and the newest image only."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


@with_options(
    TextOptions,
    but=("length", "height", "width", "batch_size"),
    at_most={"temperature": 2, "text_guidance_scale": 100},
)
class ChatRequest(ApiModel):
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "metadata", "store", "service_tier", "presence_penalty", "frequency_penalty", "logit_bias",
            "parallel_tool_calls", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
            "prompt_cache_retention", "reasoning_effort", "verbosity", "prediction", "moderation", "top_logprobs",
        }
    )  # fmt: skip
    UNSUPPORTED: ClassVar[frozenset[str]] = frozenset(
        {
            "tools", "tool_choice", "functions", "function_call", "response_format", "logprobs", "stop", "audio",
            "web_search_options",
        }
    )  # fmt: skip

    model: str | None = Field(None, description="this server's model; may be left out")
    messages: list[Message] = Field(min_length=1, max_length=256)
    modalities: list[Literal["text"]] | None = None
    n: int | None = Field(None, ge=1, description="answers; answer i has the seed `seed` + i")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Seed | None = Field(None, description="by default a random one, which the answer contains")
    max_tokens: int | None = Field(None, ge=1, description="positions to fill, at most the model's own")
    max_completion_tokens: int | None = Field(None, ge=1, description="as max_tokens")
    task: Literal["caption", "answer", "infill"] | None = Field(
        None,
        description="by default: caption without a text, infill with blanks (two or more underscores), else answer",
    )
