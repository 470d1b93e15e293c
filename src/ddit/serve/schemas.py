"""What clients send: OpenAI's fields and our own, checked strictly.

A field that OpenAI knows and that changes nothing here is accepted and ignored; one that would change the answer and is
not supported is refused, and so is one that nobody knows, since it is most likely a typing error.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ddit.diffusion.flow import Sampler
from ddit.diffusion.unmasking import Order
from ddit.errors import near_misses

Seed = Annotated[int, Field(ge=0, lt=2**62)]


class ApiModel(BaseModel):
    """Strict: no strings for numbers, no NaN, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    UNSUPPORTED: ClassVar[frozenset[str]] = frozenset()

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


class DrawRequest(ApiModel):
    """What all ways of drawing have in common."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "user",
            "quality",
            "style",
            "moderation",
            "safety_identifier",
            "input_fidelity",
            "effort",
            "complexity",
        }
    )
    UNSUPPORTED: ClassVar[frozenset[str]] = frozenset(
        {"background", "frame_count", "frame_duration_ms", "svg", "reasoning", "markup"}
    )

    model: str | None = Field(None, description="this server's model, or none given")
    n: int = Field(1, ge=1, description="pictures; picture i has the seed `seed` + i")
    size: str = Field(
        "auto",
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="width x height in pixels, before `upscale`",
    )
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg and webp")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3, description="pictures on the way, with `stream`")
    seed: Seed | None = Field(None, description="by default a random one, which the answer tells")
    num_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    sampler: Sampler | None = None
    negative_prompt: str | None = Field(None, min_length=1)
    best_of: int = Field(1, ge=1, le=16, description="pictures drawn for each, of which the best is kept")
    upscale: int = Field(1, ge=1, le=64, description="enlarges the picture that is sent back")

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, given: Any) -> Any:
        """OpenAI's clients may send null for what is not given."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name == "prompt"}


class GenerationRequest(DrawRequest):
    prompt: str = Field(min_length=1)


class FormRequest(DrawRequest):
    """The fields of a form, whose numbers are strings."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    strength: float | None = Field(
        None, gt=0, le=1, description="without a mask: how far from the picture, up to 1 [default: 0.6]"
    )


class EditRequest(FormRequest):
    prompt: str = Field(min_length=1)


class VariationRequest(FormRequest):
    prompt: str | None = Field(
        None, min_length=1, description="by default the model's caption of the picture"
    )


class ImageUrl(BaseModel):
    model_config = ConfigDict(strict=True)

    url: str = Field(
        description="a data URL, a URL of this server's files, or where allowed a public address"
    )


class FileRef(BaseModel):
    model_config = ConfigDict(strict=True)

    file_id: str | None = Field(None, description="of an upload (POST /v1/files)")
    file_data: str | None = Field(None, description="a data URL")


class ContentPart(BaseModel):
    """A text or a picture."""

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
    """Of a conversation. Only the last user's text and the newest picture are shown to the model."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


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

    model: str | None = Field(None, description="this server's model, or none given")
    messages: list[Message] = Field(min_length=1, max_length=256)
    modalities: list[Literal["text"]] | None = None
    n: int | None = Field(None, ge=1, description="answers; answer i has the seed `seed` + i")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Seed | None = Field(None, description="by default a random one, which the answer tells")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, description="positions written, at most the model's own")
    max_completion_tokens: int | None = Field(None, ge=1, description="as max_tokens")
    task: Literal["caption", "answer", "infill"] | None = Field(
        None,
        description="by default: without text a caption, with blanks (two or more underscores) infill, else an answer",
    )
    num_steps: int | None = Field(None, ge=1)
    order: Order | None = None
    threshold: float | None = Field(None, gt=0, le=1)
    entropy_bound: float | None = Field(None, ge=0)
    commit_above: float | None = Field(None, gt=0, le=1)
    block_size: int | None = Field(None, ge=0, le=4096)
    text_guidance_scale: float | None = Field(None, ge=0, le=100)
    image_refresh: int | None = Field(None, ge=0, le=4096)
    text_refresh: int | None = Field(None, ge=0, le=4096)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every fault is answered with."""

    error: ErrorDetail
