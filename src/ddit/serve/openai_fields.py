"""OpenAI's parameters that this server does not follow, each with its reason.

Those of the installed client are listed in docs/serving.md; a test compares the two.
"""

from typing import Any, NamedTuple


class Field(NamedTuple):
    """A parameter of OpenAI's API that has no effect here.

    why: shown to the client. neutral: values, beside null, that ask for nothing that this server does not do.
    refused: whether any other value is an error; if not, it is ignored, and the answer's `notices` say so.
    """

    why: str
    neutral: tuple[Any, ...] = ()
    refused: bool = False

    def notice(self, name: str) -> str:
        return f"'{name}' is ignored: {self.why}"

    def fault(self, name: str) -> str:
        return f"'{name}' is not supported by this server: {self.why}"

    def is_neutral(self, value: Any) -> bool:
        return value is None or any(value == one and type(value) is type(one) for one in self.neutral)


def refused(why: str, *neutral: Any) -> Field:
    return Field(why, neutral, refused=True)


def ignored(why: str, *neutral: Any) -> Field:
    return Field(why, neutral)


_CLIENTS = "this server does not tell its clients' users apart"
_NO_TOOLS = "the model calls no tools"
_NO_GIF = "images are sent as png, jpeg or webp"
_NO_CACHE = "there is no cache of prompts"
_NO_LOGPROBS = "a masked model has no log-probabilities of a text from left to right"
_ONE_QUALITY = "there is one quality; num_steps and guidance_scale change the sampling"

IMAGE_FIELDS = {
    "user": ignored(_CLIENTS, ""),
    "safety_identifier": ignored(_CLIENTS, ""),
    "quality": ignored(_ONE_QUALITY, "auto", "standard"),
    "complexity": ignored(_ONE_QUALITY),
    "style": ignored("the style is what the prompt says"),
    "moderation": ignored("nothing is moderated", "auto"),
    "input_fidelity": ignored("what is outside of the mask is kept; strength is how far an image is varied"),
    "frame_count": refused(_NO_GIF),
    "frame_duration_ms": refused(_NO_GIF),
    "svg": refused(_NO_GIF),
    "markup": refused("the part to edit is given as mask"),
}

CHAT_FIELDS = {
    "user": ignored(_CLIENTS, ""),
    "safety_identifier": ignored(_CLIENTS, ""),
    "metadata": ignored("nothing is stored", {}),
    "store": ignored("nothing is stored", False),
    "service_tier": ignored("there is one", "auto", "default"),
    "moderation": ignored("nothing is moderated"),
    "prompt_cache_key": ignored(_NO_CACHE),
    "prompt_cache_options": ignored(_NO_CACHE, {}),
    "prompt_cache_retention": ignored(_NO_CACHE),
    "prediction": ignored("no answer is quicker by it"),
    "reasoning_effort": ignored("the model does not reason; num_steps is its effort", "none"),
    "verbosity": ignored("the model's answers have one; max_tokens bounds their length", "medium"),
    "presence_penalty": ignored("the positions of a text are filled in any order", 0, 0.0),
    "frequency_penalty": ignored("the positions of a text are filled in any order", 0, 0.0),
    "parallel_tool_calls": ignored(_NO_TOOLS, True),
    "logit_bias": refused("its tokens are not the ones of this model", {}),
    "logprobs": refused(_NO_LOGPROBS, False),
    "top_logprobs": refused(_NO_LOGPROBS, 0),
    "stop": refused("a text is not written from left to right, so it cannot end at a word", [], ""),
    "response_format": refused("the model answers with plain text", {"type": "text"}),
    "tools": refused(_NO_TOOLS, []),
    "tool_choice": refused(_NO_TOOLS, "none", "auto"),
    "functions": refused(_NO_TOOLS, []),
    "function_call": refused(_NO_TOOLS, "none", "auto"),
    "audio": refused("the model writes text only"),
    "web_search_options": refused("the model knows its image only"),
}

FILE_FIELDS = {"expires_after": refused("files are kept until they are deleted or make room for newer ones")}

ROUTES = {
    r"GET /v1/files": "files are not listed: keep the id that an upload is answered with",
    r"DELETE /v1/models/.+": "the model of a server cannot be deleted",
    r"(GET /v1/chat/completions|\w+ /v1/chat/completions/.+)": "chat completions are not stored",
    r"\w+ /v1/(responses|completions|conversations|assistants|threads)(/.*)?": "use POST /v1/chat/completions",
    r"\w+ /v1/(batches|uploads|fine_tuning|vector_stores)(/.*)?": "this server answers at once, and stores images only",
}
"""Methods and paths of OpenAI's that are not here: what to do, or why."""
