"""What the server answers: OpenAI's objects. The field `ddit` is for what these have no place for."""

import operator
from typing import Literal

from pydantic import BaseModel, Field

from ddit.serve.jobs import Verb


class Details(BaseModel):
    seeds: list[int]
    notices: list[str] = Field(description="warnings, such as words that the model does not know")


# --- images ---


class ImageData(BaseModel):
    b64_json: str | None = None
    url: str | None = None


class ImageUsage(BaseModel):
    """Tokens of the prompt and of images."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    total_tokens: int


class Images(BaseModel):
    created: int
    data: list[ImageData]
    size: str
    output_format: Literal["png", "jpeg", "webp"]
    background: Literal["opaque"]
    usage: ImageUsage
    ddit: Details


# --- chat ---


class ChatDetails(Details):
    task: Verb
    first_block_seconds: list[float] = Field(
        exclude_if=operator.not_,
        description="of each answer of a model that writes in blocks, until its first block",
    )


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatUsage(BaseModel):
    """Tokens of text and image that were read, and of texts that were generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    ddit: ChatDetails


# --- files, models, status, errors ---


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["vision"] = "vision"
    status: Literal["processed"] = "processed"


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ddit"] = "ddit"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """Whether requests are taken; jobs in the queue and in the model."""

    status: Literal["ok", "stopping"]
    waiting: int
    running: int


class ErrorDetail(BaseModel):
    """A message in one line; the field that is wrong, if one is; a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every error is answered with."""

    error: ErrorDetail
