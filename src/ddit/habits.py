"""What users of diffusers, transformers and OpenAI's client type, and what it is called here.

Names of another library are answered in one line with the name to use. docs/coming_from.md lists the common ones.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ddit.errors import near_misses

Method = TypeVar("Method", bound=Callable[..., Any])

_VARY = "vary(images, prompts, strength=0.7) varies images"
_TAKE_IMAGES = (
    "caption(images), answer(images, questions) and choose(images, candidates) take images; "
    "vary and inpaint change them"
)
_NOT_TO_SET = "leave it out: there is nothing to set"

ARGUMENTS: Mapping[str, str] = {
    # diffusers: sampling
    "num_inference_steps": "it is num_steps",
    "generator": "it is seed: a number, or a list with one a sample",
    "num_images_per_prompt": "give the prompt as often, generate([prompt] * 4): each sample has its own seed",
    "callback_on_step_end": "it is on_step, called with a Step: done, total, rows, state",
    "callback": "it is on_step, called with a Step: done, total, rows, state",
    "output_type": "images are PIL images; pipeline(prompt, output_type='np') gives arrays, 'pt' a tensor",
    "return_dict": "leave it out: pipeline(prompt).images is a list",
    "resolution": "it is height and width",
    "shape": "it is height and width",
    "device": "leave it out: from_pretrained(..., device='cuda') or to('cuda') sets it",
    "dtype": "leave it out: from_pretrained(..., dtype='bfloat16') or to('bfloat16') sets it",
    "verbose": "leave it out: no verb prints; on_step is called after every step",
    "progress": "leave it out: no verb prints; on_step is called after every step",
    "cfg": "it is guidance_scale",
    "cfg_scale": "it is guidance_scale",
    "num_images": "give the prompt as often, generate([prompt] * 4): each sample has its own seed",
    "prompt": "it is prompts of generate, inpaint and vary, questions of answer",
    "prompt_2": "leave it out: there is one text encoder, for the argument prompts",
    "prompt_3": "leave it out: there is one text encoder, for the argument prompts",
    "negative_prompt_2": "leave it out: there is one text encoder, for negative_prompt",
    "negative_prompt_3": "leave it out: there is one text encoder, for negative_prompt",
    "prompt_embeds": "prompts are texts",
    "latents": "the noise comes from seed",
    "timesteps": "num_steps and shift set the times",
    "sigmas": "num_steps and shift set the times",
    "mask_image": "inpaint(images, masks, prompts) generates the masked part of images",
    "strength": _VARY,
    "ip_adapter_image": _VARY,
    "clip_skip": _NOT_TO_SET,
    "eta": _NOT_TO_SET,
    "cross_attention_kwargs": _NOT_TO_SET,
    "joint_attention_kwargs": _NOT_TO_SET,
    "max_sequence_length": "it is prompt_length, a setting of the model (ddit.json)",
    # diffusers, transformers: loading
    "variant": "leave it out: the files are found by themselves; dtype='float16' sets the dtype",
    "use_safetensors": "leave it out: safetensors is the only format that is read",
    "safe_serialization": "leave it out: safetensors is the only format that is written",
    "low_cpu_mem_usage": "leave it out: weights are memory-mapped",
    "trust_remote_code": "leave it out: no code of a model is run",
    "safety_checker": "leave it out: there is none",
    "quantization_config": "it is int8=True",
    "load_in_8bit": "it is int8=True",
    "revision": "download it with huggingface_hub's snapshot_download, and give the folder",
    "cache_dir": "leave it out: the environment variable HF_HOME sets the folder",
    "token": "leave it out: huggingface_hub's login, or the environment variable HF_TOKEN",
    "local_files_only": "leave it out: the environment variable HF_HUB_OFFLINE=1 does so",
    "subfolder": "give the folder that holds transformer/, vae/ and text_encoder/",
    "scheduler": "it is sampler, an option of generate: generate(prompts, sampler='dpm')",
    "pretrained_model_name_or_path": "it is name_or_path",
    # transformers
    "max_new_tokens": "it is length, of caption, answer and infill",
    "max_length": "it is length, of caption, answer and infill",
    "do_sample": "it is temperature, of caption, answer and infill; temperature=0 takes the likeliest token",
    "num_beams": "there is no beam search; temperature=0 takes the likeliest token",
    "top_k": "it is top_p, of caption, answer and infill",
    "num_return_sequences": "give the image as often, caption([image] * 4): each sample has its own seed",
    "streamer": "it is on_step, called with a Step: done, total, rows, state",
    "repetition_penalty": _NOT_TO_SET,
    "input_ids": "texts are given as they are: answer(images, questions)",
    "pixel_values": "images are given as they are: caption(images)",
    "text": "it is prompts of generate, questions of answer, texts of infill and score",
    "question": "answer(images, questions) answers questions",
    "candidate_labels": "it is candidates, of choose(images, candidates)",
    "labels": "it is candidates, of choose(images, candidates)",
    # OpenAI
    "messages": "answer(images, questions) answers questions; ddit serve takes messages",
    "n": "give the prompt as often, generate([prompt] * 4): each sample has its own seed",
    "size": "it is height and width",
    "max_tokens": "it is length, of caption, answer and infill",
    "max_completion_tokens": "it is length, of caption, answer and infill",
    "response_format": "images are PIL images, texts are str",
    "stream": "it is on_step, called with a Step: done, total, rows, state",
    "model": "Pipeline.from_pretrained(name_or_path) loads another model",
    "image": _TAKE_IMAGES,
    "images": _TAKE_IMAGES,
}
"""Arguments of other libraries."""

_IN_BATCHES = "batch_size, an option of every verb, bounds what is computed at a time"

ATTRIBUTES: Mapping[str, str] = {
    # diffusers
    "enable_attention_slicing": _IN_BATCHES,
    "enable_vae_slicing": _IN_BATCHES,
    "enable_vae_tiling": _IN_BATCHES,
    "enable_xformers_memory_efficient_attention": "attention is PyTorch's fused one already",
    "enable_sequential_cpu_offload": "it is from_pretrained(..., offload_blocks=True)",
    "components": "its parts are transformer, image_codec and text_codec",
    "load_adapter": "it is from_pretrained(..., adapter=folder)",
    "load_lora_weights": "it is from_pretrained(..., adapter=folder)",
    "scheduler": "it is sampler, an option of generate: generate(prompts, sampler='dpm')",
    "unet": "it is transformer",
    "vae": "it is image_codec",
    "text_encoder": "it is text_codec",
    "tokenizer": "it is text_codec.tokenizer",
    "config": "it is settings",
    # transformers
    "processor": "the verbs take images and texts as they are: answer(images, questions)",
    "image_processor": "the verbs take images as they are: caption(images)",
    "batch_decode": "the verbs give texts: caption(images)",
    "decode_text": "the verbs give texts: caption(images)",
    "eval": "leave it out: the model is always in that state",
    "cuda": "it is to('cuda')",
    "cpu": "it is to('cpu')",
    "half": "it is to(torch.float16)",
    "bfloat16": "it is to(torch.bfloat16)",
    "float": "it is to(torch.float32)",
    "num_parameters": "print the pipeline, or run ddit info MODEL",
    "parameters": "it is transformer.parameters",
    "state_dict": "it is transformer.state_dict",
    "train": "ddit train RECIPE trains a model",
    "push_to_hub": "save_pretrained(folder) writes a folder; ddit push FOLDER OWNER/NAME uploads it",
    # OpenAI
    "chat": "it is answer(images, questions); ddit serve has OpenAI's API",
    "images": "it is generate(prompts); ddit serve has OpenAI's API",
    "responses": "it is answer(images, questions); ddit serve has OpenAI's API",
    # the command's verbs, and plain words
    "ask": "it is answer(images, questions)",
    "vqa": "it is answer(images, questions)",
    "rank": "it is choose(images, candidates)",
    "describe": "it is caption(images)",
    "txt2img": "it is generate(prompts)",
    "img2img": "it is vary(images, prompts)",
    "edit": "it is inpaint(images, masks, prompts)",
}
"""Methods and attributes of other libraries."""


_KINDS: Mapping[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "True or False"),
    str | os.PathLike[str]: (str | os.PathLike, "a name or a path"),
    str | os.PathLike[str] | None: (str | os.PathLike | None, "a path"),
}
"""What an argument of such an annotation may be, and how that is said."""


def guarded(method: Method, *, aliases: Mapping[str, str] | None = None) -> Method:
    """A function whose wrong calls are answered in one line that says what is wanted.

    An unknown argument is answered with its name here or its near misses, a missing one with the call that is wanted.
    A plain number, truth value or path is checked, NumPy's numbers are Python's, and None is the default.
    The function's signature stays as it is. aliases: other names of arguments, and what each is here.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(*args: Any, **values: Any) -> Any:
        for other, own in (aliases or {}).items():
            if other in values and own in values:
                raise TypeError(f"{method.__name__}: {other} is {own}: give one of them")
            if other in values:
                values[own] = values.pop(other)
        try:
            bound = signature.bind(*args, **values)
        except TypeError:
            raise TypeError(_fault(method.__name__, signature, len(args), values)) from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = _plain(signature.parameters[name], value)
        return method(*bound.args, **bound.kwargs)

    shown: Any = call
    return shown


def _plain(parameter: inspect.Parameter, value: Any) -> Any:
    """A value as its parameter wants it; raises ValueError on one of another kind."""
    is_scalar = (
        hasattr(value, "item") and getattr(value, "ndim", None) == 0
    )  # NumPy's, or a tensor of one number
    if is_scalar:
        value = value.item()
    if parameter.annotation not in _KINDS:
        return value
    if (
        value is None
        and parameter.annotation in (int, float, bool)
        and parameter.default is not parameter.empty
    ):
        return parameter.default
    kinds, wanted = _KINDS[parameter.annotation]
    is_truth = isinstance(value, bool) and parameter.annotation is not bool
    if is_truth or not isinstance(value, kinds):
        raise ValueError(f"{parameter.name} must be {wanted}, got {value!r}")
    return value


def _fault(name: str, signature: inspect.Signature, num_args: int, values: Iterable[str]) -> str:
    """What is wrong with a call that does not fit."""
    if name == "__init__":
        return "a pipeline is loaded by its name or folder: Pipeline.from_pretrained('mini')"
    verb = "pipeline" if name == "__call__" else name
    known = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
    given = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for value in values:
        if value in known:
            continue
        if f"{value}s" in known:
            return f"{verb}: unknown argument '{value}': it is {value}s"
        if value in ARGUMENTS:
            return f"{verb}: unknown argument '{value}': {ARGUMENTS[value]}"
        return f"{verb}: unknown option '{value}'{near_misses(value, known)}"
    places = [parameter.name for parameter in given]
    wanted = f"{verb}({', '.join(name for name in places if name in known)})"
    missing = [p.name for p in given[num_args:] if p.default is p.empty and p.name not in values]
    if missing:
        return f"{wanted} needs {' and '.join(missing)}"
    twice = [name for name in places[:num_args] if name in values]
    if twice:
        return f"{verb}: {twice[0]} is given twice"
    return f"{wanted} takes no more without a name: give options by name, as in {known[-1]}=..."


def missing_attribute(owner: object, name: str) -> AttributeError:
    """The error of an attribute that there is not, with its name here or its near misses."""
    if name in ATTRIBUTES:
        hint = f": {ATTRIBUTES[name]}"
    else:  # what Python itself asks for is never a near miss
        hint = "" if name.startswith("_") else near_misses(name, [one for one in dir(owner) if one[0] != "_"])
    return AttributeError(f"{type(owner).__name__} has no '{name}'{hint}", name=name, obj=owner)
