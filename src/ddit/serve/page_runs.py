"""The actions of the page's buttons: jobs for the engine, shown as HTML step by step."""

import asyncio
import base64
import binascii
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from ddit.diffusion.flow import sampling_times
from ddit.images import fit_image, is_animated, read_image
from ddit.inference.batching import Step
from ddit.prompts import knows_detailed
from ddit.serve import page_view as view
from ddit.serve.engine import Engine
from ddit.serve.jobs import Job, Overloaded, Preview, Result, Stopping, TimedOut, Verb, make_options
from ddit.serve.page_view import Words
from ddit.settings import ImageSampling

log = logging.getLogger(__name__)

Shown = tuple[str, Image.Image | None]
"""HTML, and the image once it is finished."""

MAX_STEPS = 50
MAX_GUIDANCE = 20
MAX_SEED = 2**53 - 1
"""Larger whole numbers are not exact in a browser."""

NO_IMAGE = "there is no image yet: upload or paste one"
FIRST_FRAME = "The file is animated: its first frame is used."
NO_PAINT = "nothing is painted yet: paint over the part to replace"


class Runs:
    """The page's actions on one engine. Each is an asynchronous iterator over what to show, and never raises.

    pace, slow_pace: seconds for which a step is shown at least, so that it can be seen.
    """

    def __init__(self, engine: Engine, *, pace: float = 0.15, slow_pace: float = 0.8) -> None:
        self.engine, self.pace, self.slow_pace = engine, pace, slow_pace

    @property
    def image_size(self) -> int:
        return self.engine.pipeline.settings.image_size

    @property
    def can_describe(self) -> bool:
        return knows_detailed(self.engine.pipeline.text_codec)

    @property
    def _sampling(self) -> ImageSampling:
        return self.engine.pipeline.settings.image_sampling

    @property
    def max_steps(self) -> int:
        return max(MAX_STEPS, self._sampling.num_steps)

    @property
    def max_guidance(self) -> float:
        return max(MAX_GUIDANCE, self._sampling.guidance_scale)

    # --- actions ---

    async def generate(
        self, prompt: str, seed: float | None, num_steps: float | None, guidance_scale: float | None
    ) -> AsyncIterator[Shown]:
        """Generates an image, then captions it."""

        async def frames() -> AsyncIterator[Shown]:
            job = self._image_job("generate", {"prompt": prompt}, seed, num_steps, guidance_scale)
            async for shown in self._generate_and_caption(job, _file_name(prompt, job.seed)):
                yield shown

        async for shown in guarded(frames()):
            yield shown

    async def inpaint(
        self,
        image: str | Image.Image | None,
        mask: str,
        prompt: str,
        seed: float | None,
        num_steps: float | None,
        guidance_scale: float | None,
    ) -> AsyncIterator[Shown]:
        """Inpaints the painted part of an image. mask: a `data:` address of the paint, on transparency."""

        async def frames() -> AsyncIterator[Shown]:
            sample = {"image": self.fitted(image), "mask": painted(mask, self.image_size), "prompt": prompt}
            job = self._image_job("inpaint", sample, seed, num_steps, guidance_scale)
            async for shown in self._generate_and_caption(job, _file_name(prompt, job.seed)):
                yield shown

        async for shown in guarded(frames()):
            yield shown

    async def vary(
        self,
        image: str | Image.Image | None,
        prompt: str,
        strength: float,
        seed: float | None,
        num_steps: float | None,
        guidance_scale: float | None,
    ) -> AsyncIterator[Shown]:
        """Varies an image."""

        async def frames() -> AsyncIterator[Shown]:
            sample = {"image": self.fitted(image), "prompt": prompt}
            job = self._image_job("vary", sample, seed, num_steps, guidance_scale, strength=strength)
            async for shown in self._generate_and_caption(job, _file_name(prompt, job.seed)):
                yield shown

        async for shown in guarded(frames()):
            yield shown

    async def write(
        self, verb: Verb, image: str | Image.Image | None, text: str, slow: bool, **options: str
    ) -> AsyncIterator[str]:
        """Captions an image, answers the question `text` about it, or fills the blanks of `text`, by the verb.

        options: of the verb.
        """
        names = {"answer": "question", "infill": "text"}

        async def frames() -> AsyncIterator[Shown]:
            sample: dict[str, Any] = {"image": self.fitted(image)}
            if verb in names:
                sample[names[verb]] = text
            job = Job(verb, sample, options=make_options(**options))
            async for html in self._text_frames(job, self.slow_pace if slow else self.pace):
                yield html, None

        async for html, _ in guarded(frames()):
            yield html

    async def explain(self, prompt: str, seed: float | None, slow: bool) -> AsyncIterator[str]:
        """Generates an image and captions it, and keeps every step of both in sight."""
        async for html, _ in guarded(self._explain(prompt, seed, self.slow_pace if slow else self.pace)):
            yield html

    # --- frames of a job ---

    async def _generate_and_caption(self, job: Job, name: str) -> AsyncIterator[Shown]:
        alt = f"Generated from: {job.sample['prompt']}"
        image, hints = None, ""
        async for event in self._paced(job, self.pace, Preview | Result):
            if isinstance(event, Preview):
                yield view.figure(event.image, alt, done=event.done, total=event.total), None
            else:
                image, hints = event.value, "".join(map(_hint, event.warnings))
        assert image is not None
        html = hints + view.figure(image, alt, name=name)
        yield html, image
        heading = "<h2>The model's caption of its image</h2>"
        async for words in self._text_frames(Job("caption", {"image": image}, seed=job.seed), self.pace):
            yield html + heading + words, image

    async def _text_frames(self, job: Job, pace: float) -> AsyncIterator[str]:
        async for frames, result in self._text_steps(job, pace):
            if result is None:
                yield view.words_line(self._own_words(job, frames[-1]))
                continue
            words = view.words_line(self._own_words(job, frames[-1]), finished=True)
            text = result.value or "(no words)"
            yield "".join(map(_hint, result.warnings)) + view.answer(text) + words

    async def _text_steps(self, job: Job, pace: float) -> AsyncIterator[tuple[list[Words], Result | None]]:
        """The text after every step so far; at the end also the result."""
        history = view.TextHistory(self.engine.pipeline.text_codec)
        async for event in self._paced(job, pace, Step | Result):
            if isinstance(event, Result):
                yield history.frames, event
                return
            ids, answer_mask, confidence, _ = (part[0].tolist() for part in event.state)
            is_first = not history.frames
            history.add(ids, answer_mask, confidence)
            if is_first:
                yield history.frames[:1], None
                await asyncio.sleep(pace)
            yield history.frames, None

    async def _explain(self, prompt: str, seed: float | None, pace: float) -> AsyncIterator[Shown]:
        sampling, latents = self._sampling, []
        num_steps, times = sampling.num_steps, sampling_times(sampling).tolist()
        job = self._image_job("generate", {"prompt": prompt}, seed, num_steps, None)
        steps: list[view.ImageStep] = []
        result: Result | None = None
        async for event in self._paced(
            job, pace, Preview | Result, lambda step: latents.append(step.state.latents)
        ):
            result = event if isinstance(event, Result) else None
            predicted = (
                event.value if isinstance(event, Result) else event.image
            )  # the last prediction is the result
            steps.append(view.ImageStep(predicted, *times[len(steps) : len(steps) + 2]))
            yield view.image_steps(steps, num_steps), None
        assert result is not None
        noisy = await self.engine.in_worker(self.engine.pipeline.decode, torch.cat(latents))
        steps = [replace(step, noisy=image) for step, image in zip(steps, noisy, strict=True)]
        html = "".join(map(_hint, result.warnings)) + view.image_steps(steps, num_steps)
        yield html, None
        caption = Job("caption", {"image": result.value}, seed=job.seed)
        async for frames, _ in self._text_steps(caption, pace):
            own = [self._own_words(caption, words) for words in frames]
            yield html + view.text_steps(own), None

    async def _paced(
        self, job: Job, pace: float, kinds: Any, on_step: Callable[[Step], object] | None = None
    ) -> AsyncIterator[Any]:
        """The job's events of some kinds, at least `pace` seconds apart. on_step gets every step."""
        last = -pace
        async with aclosing(self.engine.stream(job)) as events:
            async for event in events:
                if on_step is not None and isinstance(event, Step):
                    on_step(event)
                if not isinstance(event, kinds):
                    continue
                await asyncio.sleep(max(last + pace - time.monotonic(), 0))
                last = time.monotonic()
                yield event

    # --- inputs ---

    def fitted(self, image: str | Image.Image | None) -> Image.Image:
        """An image, or that of a file, at the model's size. Raises ValueError if there is none."""
        if image is None:
            raise ValueError(NO_IMAGE)
        try:
            return fit_image(read_image(image), self.image_size, self.image_size)
        except ValueError as error:  # the user does not know the file's name on the server
            raise ValueError(str(error).replace(f"'{image}'", "the file")) from None

    def frame_note(self, image: str | None) -> str:
        """A line about an animated image, of which only one frame is used, as HTML; empty for any other."""
        try:
            return view.note(FIRST_FRAME) if image is not None and is_animated(image) else ""
        except ValueError:  # `image_fault` reports it
            return ""

    def image_fault(self, image: str | None) -> str:
        """A line about an image that cannot be read, as HTML; empty if it can, or if there is none."""
        try:
            if image is not None:
                self.fitted(image)
            return ""
        except ValueError as error:
            return view.note(_sentence(str(error)), fault=True)

    def _image_job(
        self,
        verb: Verb,
        sample: dict[str, Any],
        seed: float | None,
        num_steps: float | None,
        guidance_scale: float | None,
        **options: float,
    ) -> Job:
        """An image job that shows every step; None is the model's own setting, and seed 0.

        Raises ValueError for a number out of range.
        """
        seed = check_number("seed", seed, 0, MAX_SEED)
        num_steps = check_number("steps", num_steps, 1, self.max_steps)
        guidance_scale = check_number("guidance", guidance_scale, 0, self.max_guidance)
        count = int(self._sampling.num_steps if num_steps is None else num_steps)
        given = make_options(num_steps=count, guidance_scale=guidance_scale, **options)
        return Job(verb, sample, seed=int(seed or 0), options=given, num_previews=count - 1)

    def _own_words(self, job: Job, words: Words) -> Words:
        """The words to show: those that were filled or, of a text with blanks, all but the model's own prefix.

        Of a model that writes in blocks, up to the block at work.
        """
        pipeline = self.engine.pipeline
        if job.verb != "infill":
            own = tuple(word for word in words if word.kind != "given")
            num_done = next((place for place, word in enumerate(own) if word.kind == "masked"), len(own))
            size = pipeline.transformer.config.text_block_size
            return own[: (num_done // size + 1) * size] if size else own
        prefix = pipeline.text_codec.tokenizer.convert_ids_to_tokens(
            pipeline.text_codec.token_ids(pipeline.style.caption_prefix)
        )
        opening = [word.text for word in words[: len(prefix)]]
        return words[len(prefix) :] if opening == [view.piece_text(piece) for piece in prefix] else words


async def guarded(frames: AsyncIterator[Shown]) -> AsyncIterator[Shown]:
    """The frames; if they fail, the last one again with a line that says why."""
    shown: Shown = ("", None)
    try:
        async for shown in frames:
            yield shown
        return
    except ValueError as error:
        reason = str(error)
    except Overloaded as error:
        reason = f"the model is busy: try again in {error.retry_after} s"
    except (TimedOut, Stopping) as error:
        reason = str(error)
    except Exception:  # the edge of the page: the traceback goes to the server's log
        log.exception("an action of the page failed")
        reason = "something went wrong on the server; see its log"
    yield view.note(_sentence(reason), fault=True) + shown[0], shown[1]


def check_number(name: str, value: float | None, low: float, high: float) -> float | None:
    """A number of the page, None of an empty box. Raises ValueError if it is out of range, as NaN is."""
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {value}")
    return value


def painted(address: str, size: int) -> Image.Image:
    """The mask of the paint: white where there is some, size x size.

    address: a PNG on transparency as a `data:` address, its paint without green. Raises ValueError if it is another one
    or has no paint.
    """
    head, _, data = (address or "").partition(",")
    try:
        if head != "data:image/png;base64":
            raise binascii.Error
        layer = read_image(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(NO_PAINT) from None
    mask = layer.resize((size, size)).getchannel("G").point(_below_half)
    if mask.getbbox() is None:
        raise ValueError(NO_PAINT)
    return mask


def _below_half(green: int) -> int:
    return 255 if green < 128 else 0


def _hint(warning: str) -> str:
    return view.note(_sentence(warning))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def _file_name(prompt: str, seed: int) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', prompt.lower()).strip('-')[:60] or 'image'}-{seed}.png"
