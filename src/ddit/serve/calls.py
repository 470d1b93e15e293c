"""Jobs of one kind as one call of the pipeline."""

from collections.abc import Sequence
from typing import Any

from ddit.devices import batch_threads
from ddit.errors import collect_warnings
from ddit.inference.batching import StepCallback
from ddit.pipeline import Pipeline
from ddit.prompts import BLANK
from ddit.serve.jobs import Job

INPUTS: dict[str, tuple[str, ...]] = {
    "generate": ("prompt",),
    "inpaint": ("image", "mask", "prompt"),
    "vary": ("image", "prompt"),
    "caption": ("image",),
    "answer": ("image", "question"),
    "infill": ("image", "text"),
}
"""What each verb takes, in the order of its arguments."""


MAX_CANDIDATES = 16
"""Images computed at a time where a job asks for the best of several."""


def call_pipeline(
    pipeline: Pipeline, jobs: Sequence[Job], on_step: StepCallback
) -> list[tuple[Any, tuple[str, ...]]]:
    """The image or text of each job, and the warnings about them. Raises what the pipeline raises."""
    verb = jobs[0].verb
    options: dict[str, Any] = dict(jobs[0].options)
    given = jobs[0].sample
    inputs = [
        [job.sample[name] for job in jobs] if given.get(name) is not None else None for name in INPUTS[verb]
    ]
    for name in ("negative_prompt", "history"):
        if given.get(name) is not None:
            options[name] = [job.sample[name] for job in jobs]
    candidates = len(jobs) * options.get("best_of", 1)
    batch_size = max(len(jobs), min(candidates, MAX_CANDIDATES))
    with collect_warnings() as found, batch_threads(candidates):
        values = getattr(pipeline, verb)(
            *inputs, seed=[job.seed for job in jobs], batch_size=batch_size, on_step=on_step, **options
        )
    warnings = [
        tuple(dict.fromkeys(warning.message for warning in found if _is_about(warning.about, job)))
        for job in jobs
    ]
    return list(zip(values, warnings, strict=True))


def _is_about(given: object, job: Job) -> bool:
    """Whether a warning is about a job's image, or one of its texts, as warnings quote them."""
    return any(
        given is value or (isinstance(value, str) and given in (value, BLANK.sub(" ", value)))
        for value in job.sample.values()
    )
