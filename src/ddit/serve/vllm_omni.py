"""A D-DiT as a model of vLLM-Omni, which finds `register` under the entry point `vllm_omni.general_plugins`.

Written for vLLM-Omni 0.30: docs/serving.md says how to start it, and what of it was run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ddit.images import image_sources, read_image, read_mask, read_transparency
from ddit.pipeline import Pipeline
from ddit.schema import list_options
from ddit.serve.calls import call_pipeline
from ddit.serve.jobs import Job, Options, Verb, make_options
from ddit.settings import CaptionOptions, ImageOptions, TextOptions

MODEL_CLASS_NAME = "DualDiffusionPipeline"
"""What vLLM-Omni calls the model: the class in the `model_index.json` of our folders."""

OPTIONS = {"caption": CaptionOptions, "answer": TextOptions}


def register() -> None:
    """Tells vLLM-Omni of the model; in each of its processes, any number of times."""
    from vllm_omni.diffusion.registry import (  # pyright: ignore[reportMissingImports]
        register_diffusion_model,
    )

    register_diffusion_model(MODEL_CLASS_NAME, __name__, "OmniModel")


class OmniModel(torch.nn.Module):
    """What vLLM-Omni loads and calls. Its own weight loading, offloading and LoRA find no parameters here.

    Args:
        od_config: vLLM-Omni's `OmniDiffusionConfig`: `model` is what `Pipeline.from_pretrained` takes, `dtype` a dtype.
        prefix: not used.
    """

    supports_request_batch = True
    supports_request_cancellation = True
    support_image_input = True
    color_format = "RGB"

    def __init__(self, *, od_config: Any, prefix: str = "") -> None:
        from vllm_omni.diffusion.distributed.utils import (  # pyright: ignore[reportMissingImports]
            get_local_device,
        )

        super().__init__()
        self.device = get_local_device()
        with _torch_defaults():
            self.pipeline = Pipeline.from_pretrained(
                od_config.model, device=self.device, dtype=od_config.dtype
            )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Nothing: the weights are loaded with the rest. None says so to vLLM-Omni, which checks a set of names."""

    def setup_compile(self) -> None:
        """Compiles as ddit does; called unless vLLM-Omni was started with --enforce-eager."""
        self.pipeline.compile()

    def forward(self, batch: Any) -> list[Any]:
        """A `DiffusionOutput` for each request of a `DiffusionRequestBatch`; what is alike is computed together.

        The payload is {"image": [PIL images]} or {"text": text}. What the model could not use, such as words that it
        does not know, is in the metadata, as {"ddit": {"warnings": [...]}}. A request's fault is the error of its own
        output.
        """
        from vllm_omni.diffusion.data import (  # pyright: ignore[reportMissingImports]
            DiffusionOutput,
        )

        faults: dict[int, Exception] = {}
        jobs: list[tuple[int, Job]] = []
        for number, request in enumerate(batch.requests):
            try:
                jobs += [(number, job) for job in make_jobs(request)]
            except (ValueError, TypeError) as fault:
                faults[number] = fault
        done = defaultdict(list)
        for number, job, result in _run(self.pipeline, jobs):
            if isinstance(result, Exception):
                faults[number] = result
            else:
                done[number].append((job.verb, *result))
        return [
            DiffusionOutput(error=str(faults[number]), error_status_code=400, error_type="BadRequestError")
            if number in faults
            else DiffusionOutput(output=_envelope(done[number]))
            for number in range(len(batch.requests))
        ]


def make_jobs(request: Any) -> list[Job]:
    """The images, or the one text, that an `OmniDiffusionRequest` asks for.

    With "text" among the prompt's `modalities` it is an answer to the prompt about the image, or a caption if the
    prompt is empty. Otherwise an image: generated, in-painted if there is a mask, or varied if there is an image alone.
    `extra_args` of the sampling parameters are the options of that verb by ddit's own names; others are left alone.

    Raises:
        ValueError, TypeError: for images that cannot be read or are more than one, a mask alone, or no seed.
    """
    prompt: dict[str, Any] = {"prompt": request.prompt} if isinstance(request.prompt, str) else request.prompt
    params = request.sampling_params
    if params.seed is None:
        raise ValueError("give a seed: a generator is not taken")
    text, image, mask = prompt.get("prompt") or "", *_read_images(prompt.get("multi_modal_data") or {})
    if "text" in (prompt.get("modalities") or ()):
        verb: Verb = "answer" if text.strip() else "caption"
        options = _extra(params, OPTIONS[verb]) | {"num_steps": params.num_inference_steps}
        return [Job(verb, {"image": image, "question": text or None}, params.seed, _hashable(options))]
    if request.is_dummy_run():  # of vLLM-Omni's own size, with an image that shows nothing
        image, height, width = None, None, None
    else:
        height, width = params.height, params.width
    if mask is not None and image is None:
        raise ValueError("a mask needs an image")
    verb = "generate" if image is None else "vary" if mask is None else "inpaint"
    options = _extra(params, ImageOptions) | {
        "num_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale if params.guidance_scale_provided else None,
        "height": height,
        "width": width,
        "strength": params.strength if verb == "vary" else None,
    }
    sample = {
        "prompt": text,
        "negative_prompt": prompt.get("negative_prompt") or None,
        "image": image,
        "mask": mask,
    }
    count = params.num_outputs_per_prompt
    return [Job(verb, sample, params.seed + number, _hashable(options)) for number in range(count)]


def _read_images(data: Mapping[str, Any]) -> list[Any]:
    """Image and mask. A mask's transparent parts are generated, as OpenAI has it, or if it has none its white ones."""
    given = data.get("image", data.get("img2img"))
    images = [] if given is None else image_sources(given)
    if len(images) > 1:
        raise ValueError(f"one image a request, got {len(images)}")
    mask = data.get("mask_image")
    if mask is not None:
        transparent = read_transparency(mask)
        mask = transparent if transparent.getbbox() else read_mask(mask)
    return [read_image(images[0]) if images else None, mask]


def _extra(params: Any, declared: Any) -> dict[str, Any]:
    names = {option.name for option in list_options(declared)} - {"batch_size", "negative_prompt"}
    return {name: value for name, value in (params.extra_args or {}).items() if name in names}


def _hashable(options: Mapping[str, Any]) -> Options:
    return make_options(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def _run(
    pipeline: Pipeline, jobs: Sequence[tuple[int, Job]]
) -> Iterator[tuple[int, Job, tuple[Any, tuple[str, ...]] | Exception]]:
    """Each job with its request's number, and its value with warnings, or its fault; jobs of one kind in one call."""
    kinds: dict[Hashable, list[tuple[int, Job]]] = defaultdict(list)
    for number, job in jobs:
        kinds[job.kind].append((number, job))
    for alike in kinds.values():
        for (number, job), result in zip(alike, _call(pipeline, [job for _, job in alike]), strict=True):
            yield number, job, result


def _call(pipeline: Pipeline, jobs: Sequence[Job]) -> list[tuple[Any, tuple[str, ...]] | Exception]:
    """The jobs in one call, or one by one if the call fails, so that only those at fault fail."""
    from vllm_omni.diffusion.cancellation import (  # pyright: ignore[reportMissingImports]
        check_request_cancellation,
    )

    try:
        return [*call_pipeline(pipeline, jobs, lambda _: check_request_cancellation())]
    except (ValueError, TypeError) as fault:
        return [fault] if len(jobs) == 1 else [result for job in jobs for result in _call(pipeline, [job])]


def _envelope(done: Sequence[tuple[Verb, Any, tuple[str, ...]]]) -> dict[str, Any]:
    verb, value, _ = done[0]
    is_text = verb in OPTIONS
    warnings = list(dict.fromkeys(warning for _, _, found in done for warning in found))
    return {
        "payload": {"text": value} if is_text else {"image": [image for _, image, _ in done]},
        "metadata": {"ddit": {"warnings": warnings}} if warnings else {},
    }


@contextmanager
def _torch_defaults() -> Iterator[None]:
    """PyTorch's own default device and dtype, where vLLM-Omni has set the model's."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
